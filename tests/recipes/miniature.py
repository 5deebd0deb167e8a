"""Miniature data sets in official layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

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


def make_voc(root: Path, splits: dict[str, int]) -> Path:
    """A folder of VOC's layout for both tasks, with so many images in each split."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    index = 0
    for split, number in splits.items():
        names = []
        for _ in range(number):
            image, box, label = scene(index)
            name = f"scene_{index}"
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            (root / "Annotations" / f"{name}.xml").write_text(_annotation(box, ("red", "green")[label - 1]))
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
