"""One miniature data set in the forms in which people download and keep theirs."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from miniature import HEIGHT, WIDTH, scene
from PIL import Image
from pycocotools.mask import encode

CLASSES = ("green", "red")  # sorted, as VOC's names are; `scene` has 1 for red and 2 for green
SPLITS = {"train": (0, 1, 2, 3), "val": (4, 5), "test": (6, 7)}
COLOURS = ((0, 0, 0), (0, 128, 0), (200, 0, 0))


def name_of(index: int) -> str:
    return f"Photo {index:03d}"


def label_of(index: int) -> int:
    """The class, from 1, in `CLASSES`."""
    return 3 - scene(index)[2]


def image(path: Path, index: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(index)[0]).save(path)
    return path


def xml(path: Path, index: int) -> None:
    x0, y0, x1, y1 = scene(index)[1]
    box = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
    edges = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    item = f"<object><name>{CLASSES[label_of(index) - 1]}</name><bndbox>{edges}</bndbox></object>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{name_of(index)}.png</filename>{size}{item}</annotation>")


def txt(path: Path, index: int, *, polygon: bool = False) -> None:
    x0, y0, x1, y1 = scene(index)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    box = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
    points = [value for x, y in outline(index) for value in (x / WIDTH, y / HEIGHT)]
    path.write_text(f"{label_of(index) - 1} {' '.join(f'{value:.9f}' for value in (points if polygon else box))}\n")


def mask(path: Path, index: int, *, form: str = "ids") -> None:
    x0, y0, x1, y1 = scene(index)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    ids[y0:y1, x0:x1] = label_of(index)
    if form == "colours":
        Image.fromarray(np.array(COLOURS, dtype=np.uint8)[ids]).save(path)
    elif form == "binary":
        Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8)).save(path)
    elif form == "palette":
        picture = Image.fromarray(ids)
        picture.putpalette([value for colour in COLOURS for value in colour])
        picture.save(path)
    else:
        Image.fromarray(ids).save(path)


def outline(index: int) -> list[tuple[int, int]]:
    """The corners of the object and a fifth point on an edge, as nobody writes a box."""
    x0, y0, x1, y1 = scene(index)[1]
    return [(x0, y0), ((x0 + x1) // 2, y0), (x1, y0), (x1, y1), (x0, y1)]


def labelme(path: Path, index: int, *, kind: str = "polygon") -> None:
    points = outline(index)
    shape = {"label": CLASSES[label_of(index) - 1], "shape_type": kind, "points": points, "group_id": None}
    if kind == "rectangle":
        shape["points"] = [points[3], points[0]]  # drawn from the right to the left
    elif kind == "mask":
        (x0, y0), (x1, y1) = points[0], points[3]
        shape["points"] = [(x0, y0), (x1 - 1, y1 - 1)]
        stream = io.BytesIO()
        Image.fromarray(np.ones((y1 - y0, x1 - x0), dtype=bool)).save(stream, "PNG")
        shape["mask"] = base64.b64encode(stream.getvalue()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"..\\x\\{name_of(index)}.png"}
    path.write_text(json.dumps({**content, "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}))


def runs(index: int, *, compressed: bool) -> dict[str, Any]:
    """The object in COCO's run lengths."""
    x0, y0, x1, y1 = scene(index)[1]
    inside = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    inside[y0:y1, x0:x1] = 1
    if compressed:
        return {"size": [HEIGHT, WIDTH], "counts": encode(inside)["counts"].decode()}
    edges = np.flatnonzero(np.diff(inside.ravel(order="F"))) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, inside.size]).tolist()}


def coco(path: Path, named: dict[int, str], *, hollow: bool = False, outlined: str = "") -> None:
    """A JSON file; `named` is the `file_name` of each image, and `outlined` the form of outlines in place of boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boxes = {index: scene(index)[1] for index in named}
    shift = 1 if hollow else 0
    categories = [{"id": i + shift, "name": name, "supercategory": "things"} for i, name in enumerate(CLASSES)]
    if hollow:
        categories.insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in named.items()],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": label_of(i) - 1 + shift,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            for i, (x0, y0, x1, y1) in boxes.items()
        ],
        "categories": categories,
    }
    for item in content["annotations"] if outlined else ():
        i = item["image_id"]
        del item["bbox"]
        polygon = [[value for point in outline(i) for value in point]]
        item["segmentation"] = polygon if outlined == "polygons" else runs(i, compressed=outlined == "compressed")
    path.write_text(json.dumps(content))


def place(
    root: Path,
    images: str,
    truths: str,
    write: Callable[..., None],
    *,
    splits: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Write all images and their annotations.

    Args:
        root: folder to write into.
        images, truths: paths of an image and its annotation, with {split}, {name} and {index}.
        write: function that writes an annotation.
        splits: other names of splits in paths.
        options: arguments of `write`.
    """
    for split, indices in SPLITS.items():
        for index in indices:
            words = {"split": (splits or {}).get(split, split), "name": name_of(index), "index": f"{index:03d}"}
            image(root / images.format(**words), index)
            write(root / truths.format(**words), index, **options)


def lists(root: Path, name: str, line: str) -> None:
    """Write a list of images for each split."""
    for split, indices in SPLITS.items():
        lines = (line.format(name=name_of(index), index=f"{index:03d}") for index in indices)
        (root / name.format(split=split)).write_text("".join(f"{each}\n" for each in lines))


def voc_other_names(root: Path) -> None:
    """images/ and annotations/ in two more folders, and lists without endings."""
    root = root / "blood cells" / "Dataset"
    place(root, "images/{name}.png", "annotations/{name}.xml", xml)
    lists(root, "{split}.txt", "{name}")


def voc_side_by_side(root: Path) -> None:
    """Train/, Valid/ and Test/ with images beside their annotations."""
    splits = {"train": "Train", "val": "Valid", "test": "Test"}
    place(root, "{split}/{name}.png", "{split}/{name}.xml", xml, splits=splits)


def voc_lists(root: Path) -> None:
    """Lists with the images' endings and folders, outside ImageSets; masks of the same names are there too."""
    place(root, "IMAGES/{name}.PNG", "XML/{name}.xml", xml)
    place(root, "IMAGES/{name}.PNG", "seg/{name}.png", mask)
    lists(root, "{split}_list.txt", "IMAGES/{name}.PNG")


def voc_named_inside(root: Path) -> None:
    """Annotations with other names than their images, which they name."""
    place(root, "{split}/img/{name}.png", "{split}/ann/a{index}.xml", xml)


def coco_paths_from_the_root(root: Path) -> None:
    """annotations/train.json and the like, with paths relative to the root."""
    place(root, "images/{split}/{name}.png", "unused", lambda *_: None)
    for split, indices in SPLITS.items():
        coco(root / "annotations" / f"{split}.json", {i: f"images/{split}/{name_of(i)}.png" for i in indices})


def coco_one_file(root: Path) -> None:
    """One file for all images, whose names are absolute paths of another machine; folders split them."""
    place(root, "data/{split}/{name}.png", "unused", lambda *_: None)
    named = {i: f"/home/me/{split}/{name_of(i)}.png" for split, indices in SPLITS.items() for i in indices}
    coco(root / "data" / "annotations.json", named)


def roboflow_coco(root: Path) -> None:
    """_annotations.coco.json in each split, with a category above the others."""
    place(root, "{split}/{name}.png", "unused", lambda *_: None, splits={"val": "valid"})
    for split, indices in SPLITS.items():
        folder = root / {"val": "valid"}.get(split, split)
        coco(folder / "_annotations.coco.json", {i: f"{name_of(i)}.png" for i in indices}, hollow=True)


def yolo_split_inside(root: Path) -> None:
    """images/train, labels/train and data.yaml."""
    place(root, "images/{split}/{name}.png", "labels/{split}/{name}.txt", txt)
    paths = "".join(f"{split}: images/{split}\n" for split in SPLITS)
    (root / "data.yaml").write_text(f"path: ../x\n{paths}names: {{0: green, 1: red}}\n")


def yolo_split_outside(root: Path) -> None:
    """Roboflow's form: train/images and train/labels, and paths of data.yaml that are not there."""
    place(root, "{split}/images/{name}.png", "{split}/labels/{name}.txt", txt, splits={"val": "valid"})
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (root / "data.yaml").write_text(f"{paths}nc: 2\nnames: ['green', 'red']\n")
    (root / "README.roboflow.txt").write_text("Blood\n\nThis dataset was exported.\n")


def yolo_beside(root: Path) -> None:
    """Darknet's form: text files beside the images, obj.names, lists of paths."""
    place(root, "obj/{name}.png", "obj/{name}.txt", txt)
    (root / "obj.names").write_text("green\nred\n")
    lists(root, "{split}.txt", "data/obj/{name}.png")


def yolo_polygons(root: Path) -> None:
    """Polygons, a classes.txt, and splits in folders of any names, which a .yaml says."""
    splits = {split: f"set {number}" for number, split in enumerate(SPLITS)}
    place(root, "images/{split}/{name}.png", "labels/{split}/{name}.txt", txt, splits=splits, polygon=True)
    (root / "classes.txt").write_text("green\nred\n")
    (root / "my.yaml").write_text("train: images/set 0\nval: [images/set 1]\ntest: images/set 2\nnames: []\n")


def labelme_beside(root: Path, kind: str = "polygon") -> None:
    """JSON files beside their images, in folders of splits."""
    place(root, "{split}/{name}.png", "{split}/{name}.json", labelme, kind=kind)


def labelme_named_inside(root: Path) -> None:
    """Rectangles in files with other names than their images, which they name, and lists."""
    place(root, "images/{name}.png", "labels/{index}.json", labelme, kind="rectangle")
    lists(root, "{split}.txt", "{name}.png")


def labelme_masks(root: Path) -> None:
    """Masks of objects, as LabelMe's AI tools write them."""
    labelme_beside(root, "mask")


def table(path: Path, indices: Iterable[int], form: str) -> None:
    """Boxes in a CSV file: corners in pixels, a list of corner and size, or corners in fractions."""
    head = {
        "corners": "filename,width,height,class,xmin,ymin,xmax,ymax",
        "list": "image_id;width;height;bbox;label",
        "fractions": "ImageID,Source,LabelName,XMin,XMax,YMin,YMax",
    }[form]
    lines = [head]
    for index in indices:
        x0, y0, x1, y1 = scene(index)[1]
        label = CLASSES[label_of(index) - 1]
        if form == "corners":
            lines.append(f'"{name_of(index)}.png",{WIDTH},{HEIGHT},{label},{x0},{y0},{x1},{y1}')
        elif form == "list":
            lines.append(f"{name_of(index)};9;9;[{x0}.0, {y0}.0, {x1 - x0}.0, {y1 - y0}.0];{label}")
        else:
            fractions = (x0 / WIDTH, x1 / WIDTH, y0 / HEIGHT, y1 / HEIGHT)
            lines.append(f"{name_of(index)},people,{label},{','.join(f'{value:.9f}' for value in fractions)}")
    path.write_text("\n".join(lines) + "\n")


def csv_corners(root: Path, form: str = "corners") -> None:
    """A table for each split, and the images in folders of the same words."""
    place(root, "images/{split}/{name}.png", "unused", lambda *_: None)
    for split, indices in SPLITS.items():
        table(root / f"{split}_labels.csv", indices, form)


def csv_fractions(root: Path) -> None:
    """Tables in fractions, beside others."""
    csv_corners(root, "fractions")
    (root / "class-descriptions.csv").write_text("LabelName,DisplayName\nred,Red\n")


def csv_list(root: Path) -> None:
    """One table for all images, and lists."""
    place(root, "pictures/{name}.png", "unused", lambda *_: None)
    table(root / "boxes.csv", [index for indices in SPLITS.values() for index in indices], "list")
    lists(root, "{split}.txt", "{name}.png")


def coco_outlines(root: Path, outlined: str = "polygons") -> None:
    """A file for each split, without boxes."""
    place(root, "images/{split}/{name}.png", "unused", lambda *_: None)
    for split, indices in SPLITS.items():
        coco(root / f"{split}.json", {i: f"{name_of(i)}.png" for i in indices}, outlined=outlined)


def coco_runs(root: Path) -> None:
    """Run lengths as lists."""
    coco_outlines(root, "counts")


def coco_compressed_runs(root: Path) -> None:
    """Run lengths as strings."""
    coco_outlines(root, "compressed")


DETECTION = {
    each.__name__: each
    for each in (
        voc_other_names,
        voc_side_by_side,
        voc_lists,
        voc_named_inside,
        coco_paths_from_the_root,
        coco_one_file,
        roboflow_coco,
        yolo_split_inside,
        yolo_split_outside,
        yolo_beside,
        yolo_polygons,
        labelme_beside,
        labelme_named_inside,
        labelme_masks,
        csv_corners,
        csv_fractions,
        csv_list,
        coco_outlines,
        coco_runs,
        coco_compressed_runs,
    )
}
OUTLINED = {
    each.__name__: each
    for each in (
        yolo_polygons,
        labelme_beside,
        labelme_masks,
        coco_outlines,
        coco_runs,
        coco_compressed_runs,
    )
}


def masks_split_outside(root: Path, form: str = "ids") -> None:
    """train/images and train/masks."""
    place(root, "{split}/images/{name}.png", "{split}/masks/{name}.png", mask, form=form)


def masks_split_inside(root: Path) -> None:
    """images/training and annotations/training, palette images."""
    splits = {"train": "training", "val": "validation", "test": "testing"}
    place(root, "images/{split}/{name}.png", "annotations/{split}/{name}.png", mask, splits=splits, form="palette")


def masks_camvid(root: Path) -> None:
    """train, trainannot and so on."""
    place(root, "{split}/{name}.png", "{split}annot/{name}.png", mask)


def masks_suffixed(root: Path) -> None:
    """Names with _mask, lists of names."""
    place(root, "imgs/{index}.jpeg", "imgs_masks/{index}_mask.png", mask)
    lists(root, "{split}.txt", "{index}")


def masks_beside(root: Path) -> None:
    """Images and masks in one folder, told apart by the last word of their names."""
    place(root, "{split}/{index}_sat.jpg", "{split}/{index}_mask.png", mask)


def unsplit(make: Callable[[Path], None], root: Path, names: tuple[str, ...]) -> None:
    """A form with the files of its folders in one, so that nothing tells the splits."""
    make(root)
    for split in list(SPLITS):
        for name in names:
            for file in (root / name / split).glob("*"):
                shutil.move(file, root / name / file.name)
            (root / name / split).rmdir()


def masks_chase(root: Path) -> None:
    """Images and two masks of each in one folder, of two observers."""
    place(root, "Image_{index}L.jpg", "Image_{index}L_1stHO.png", mask, form="binary")
    place(root, "Image_{index}L.jpg", "Image_{index}L_2ndHO.png", mask, form="binary")


def masks_of_objects(root: Path) -> None:
    """A folder for each image, with a mask for each object."""
    for indices in SPLITS.values():
        for index in indices:
            image(root / "stage1_train" / f"a{index}" / "images" / f"a{index}.png", index)
            for part in ("x", "y"):
                mask(root / "stage1_train" / f"a{index}" / "masks" / f"{part}{index}.png", index, form="binary")


def masks_drive(root: Path) -> None:
    """DRIVE's form: names that differ by words on both sides, and a second kind of masks for the same images."""
    splits = {"train": "training", "val": "validation"}
    place(root, "{split}/images/{index}_{split}.tif", "{split}/1st_manual/{index}_manual1.png", mask, splits=splits)
    place(
        root, "{split}/images/{index}_{split}.tif", "{split}/mask/{index}_mask.png", mask, splits=splits, form="binary"
    )


SEGMENTATION = {
    each.__name__: each
    for each in (masks_split_outside, masks_split_inside, masks_camvid, masks_suffixed, masks_beside, masks_drive)
}
