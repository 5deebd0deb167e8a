"""Write Glyphs as files in the VOC layout, for everything that reads a folder of data."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pliant.data.glyphs import DIGITS, Glyphs, Scene
from pliant.data.problems import DataError


def write_glyphs(root: Path, lengths: Mapping[Literal["train", "test"], int], *, seed: int = 0, **scenes: Any) -> Path:
    """Write scenes with their boxes and masks, for detection and segmentation.

    Args:
        root: folder to create; it must not exist or be empty.
        lengths: number of scenes of each split.
        seed: see `Glyphs`.
        scenes: size, digits, sides and warp of `Glyphs`.

    Returns:
        `root`.

    Raises:
        DataError: if the folder is not empty.
        ValueError: if an argument is out of its range.
    """
    splits = {split: Glyphs(length, split=split, seed=seed, **scenes) for split, length in lengths.items()}
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(root, "is not empty and is left as it is")
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, glyphs in splits.items():
        names = [f"{split}_{index:05d}" for index in range(len(glyphs))]
        for index, name in enumerate(names):
            _write_scene(root, name, glyphs.scene(index))
        for task in ("Main", "Segmentation"):
            (root / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("background", *DIGITS)))
    return root


def _write_scene(root: Path, name: str, scene: Scene) -> None:
    Image.fromarray(scene.image.transpose(1, 2, 0)).save(root / "JPEGImages" / f"{name}.png")
    mask = Image.fromarray(scene.mask)
    mask.putpalette([channel for level in np.linspace(0, 255, 1 + len(DIGITS)) for channel in 3 * [int(level)]])
    mask.save(root / "SegmentationClass" / f"{name}.png")
    annotation = ElementTree.Element("annotation")
    size = ElementTree.SubElement(annotation, "size")
    for key, value in zip(("depth", "height", "width"), scene.image.shape, strict=True):
        ElementTree.SubElement(size, key).text = str(value)
    for (x0, y0, x1, y1), label in zip(scene.boxes.astype(int).tolist(), scene.labels, strict=True):
        seen = ElementTree.SubElement(annotation, "object")
        ElementTree.SubElement(seen, "name").text = DIGITS[label - 1]
        corners = ElementTree.SubElement(seen, "bndbox")
        # VOC counts pixels from 1, the last one included.
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1), strict=True):
            ElementTree.SubElement(corners, key).text = str(value)
    ElementTree.ElementTree(annotation).write(root / "Annotations" / f"{name}.xml")
