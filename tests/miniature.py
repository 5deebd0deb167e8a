"""Miniature data sets in official layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WIDTH, HEIGHT = 64, 48


def scene(index: int) -> tuple[np.ndarray, tuple[int, int, int, int], int]:
    """An image, its bright box (x0, y0, x1, y1) and the box's class: 1 is red, 2 is green."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    x0, y0, label = int(rng.integers(2, 30)), int(rng.integers(2, 16)), 1 + index % 2
    box = (x0, y0, x0 + 30, y0 + 28)
    image[y0 : box[3], x0 : box[2], label - 1] = 230
    return image, box, label


def _annotation(box: tuple[int, int, int, int], name: str) -> str:
    x0, y0, x1, y1 = box
    return (
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"
    )


def make_voc(
    root: Path, splits: dict[str, int], *, pattern: str = "scene_{}", classes: tuple[str, str] = ("red", "green")
) -> Path:
    """A folder of VOC's layout for both tasks, with so many images in each split."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    index = 0
    for split, number in splits.items():
        names = []
        for _ in range(number):
            image, box, label = scene(index)
            name = pattern.format(index)
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            (root / "Annotations" / f"{name}.xml").write_text(_annotation(box, classes[label - 1]))
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            mask[box[1] : box[3], box[0] : box[2]] = label
            picture = Image.fromarray(mask)
            picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
            picture.save(root / "SegmentationClass" / f"{name}.png")
            names.append(name)
            index += 1
        for task in ("Main", "Segmentation"):
            (root / "ImageSets" / task / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def make_devkit(root: Path) -> Path:
    """VOC's own years: 2007 and 2012, with its names of images and two of its classes."""
    names = ("aeroplane", "bicycle")
    make_voc(root / "VOCdevkit" / "VOC2007", {"trainval": 3, "test": 2}, pattern="{:06d}", classes=names)
    splits = {"train": 3, "val": 2, "trainval": 0}
    make_voc(root / "VOCdevkit" / "VOC2012", splits, pattern="2008_{:06d}", classes=names)
    for task in ("Main", "Segmentation"):
        lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / task
        (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    return root


def make_sbd(root: Path) -> Path:
    """SBD's layout: images 2 to 6, of which VOC has 0 to 2 in train and 3 and 4 in val; 5 is in SBD's val."""
    for folder in ("img", "cls"):
        (root / folder).mkdir(parents=True)
    for index in range(2, 7):
        image, box, label = scene(index)
        Image.fromarray(image).save(root / "img" / f"2008_{index:06d}.jpg", quality=95)
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[box[1] : box[3], box[0] : box[2]] = label
        truth = np.empty((1, 1), dtype=[("Segmentation", object)])
        truth["Segmentation"][0, 0] = mask
        savemat(root / "cls" / f"2008_{index:06d}.mat", {"GTcls": truth}, do_compression=True)
    (root / "train.txt").write_text("".join(f"2008_{index:06d}\n" for index in (2, 3, 4, 6)))
    (root / "val.txt").write_text("2008_000005\n")
    return root


def make_cityscapes(root: Path, splits: dict[str, int]) -> Path:
    """Cityscapes' layout, in two cities; roads (label 7) and cars (26) on what is out of the region (3)."""
    index = 0
    for split, number in splits.items():
        for position in range(number):
            city = ("aachen", "bochum")[position % 2]
            image, box, label = scene(index)
            name = f"{city}_{index:06d}_000019"
            for kind in ("leftImg8bit", "gtFine"):
                (root / kind / split / city).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            ids = np.full((HEIGHT, WIDTH), 3, dtype=np.uint8)
            ids[box[1] : box[3], box[0] : box[2]] = (7, 26)[label - 1]
            Image.fromarray(ids).save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png")
            index += 1
    return root


def make_coco(root: Path, splits: dict[str, int]) -> Path:
    """A folder of COCO's layout."""
    (root / "annotations").mkdir(parents=True)
    index = 0
    for split, number in splits.items():
        (root / split).mkdir()
        images, annotations = [], []
        for _ in range(number):
            image, (x0, y0, x1, y1), label = scene(index)
            Image.fromarray(image).save(root / split / f"{index}.png")
            images.append({"id": index, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT})
            annotations.append(
                {
                    "id": index + 1,
                    "image_id": index,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
            index += 1
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def make_test_dev(root: Path) -> Path:
    """Images to send results of: test-dev2015 is the second half of test2015, without annotations."""
    (root / "test2015").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for index in range(100, 104):
        Image.fromarray(scene(index)[0]).save(root / "test2015" / f"{index}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (102, 103)]
    content = {"images": images, "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]}
    (root / "annotations" / "image_info_test-dev2015.json").write_text(json.dumps(content))
    return root


def make_folders(root: Path, splits: dict[str, int]) -> Path:
    """A folder for each class in a folder for each split, with so many images in each split."""
    index = 0
    for split, number in splits.items():
        for _ in range(number):
            image, _, label = scene(index)
            folder = root / split / ("red", "green")[label - 1]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.jpg", quality=95)
            index += 1
    return root
