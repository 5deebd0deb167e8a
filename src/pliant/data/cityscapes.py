"""Cityscapes: street scenes with fine labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets import Cityscapes

from pliant.constants import IGNORE
from pliant.data.files import FileFinder
from pliant.data.image_set import Transforms, check_classes
from pliant.data.images import MASK_SUFFIXES, images_below, read_mask
from pliant.data.problems import DataError
from pliant.data.segmentation_set import SegmentationSet

SPLITS = ("train", "val", "test")
_IMAGE, _MASK = "_leftImg8bit", "_gtFine_labelIds"


class CityscapesSegmentation(SegmentationSet):
    """The nineteen evaluated classes of Cityscapes, from `gtFine/SPLIT/CITY/..._gtFine_labelIds.png`.

    torchvision's `Cityscapes` defines which of the 34 label ids are trained on. All others are 255. There is no
    background class.

    Args:
        root: folder that contains `leftImg8bit` and `gtFine`.
        split: `"train"`, `"val"` or `"test"` (whose masks are empty).
        classes: other names for the nineteen classes.
        transforms: called with image and mask.
        strict: raise at the first problem.
        only: image files to use; None for all.

    Raises:
        DataError: if a folder is missing or no image is usable; in strict mode at any problem.
        ValueError: if `classes` are not nineteen.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
    ) -> None:
        super().__init__(Path(root), transforms, strict, only)
        names = cityscapes_classes()
        self.classes = check_classes(classes) or names
        if len(self.classes) != len(names):
            raise ValueError(f"Cityscapes has {len(names)} classes, got {len(self.classes)}: {', '.join(self.classes)}")
        if split not in SPLITS:
            raise DataError(self.root, f"no split {split!r}; Cityscapes has {', '.join(SPLITS)}")
        for folder in (self.root / "leftImg8bit" / split, self.root / "gtFine" / split):
            if not folder.is_dir():
                raise DataError(
                    folder, "there is no such folder, in which Cityscapes has the images or labels of a split"
                )
        self.split = split
        self._train_ids = np.full(256, IGNORE, dtype=np.uint8)
        for known in Cityscapes.classes:
            if 0 <= known.train_id < IGNORE and known.id >= 0:
                self._train_ids[known.id] = known.train_id
        self._scan_split()
        self._require_samples()

    def _scan_split(self) -> None:
        images, labels = (self.root / folder / self.split for folder in ("leftImg8bit", "gtFine"))
        finder = FileFinder()
        for image in images_below(images).images:
            if self._leaves_out(image):
                continue
            name = image.stem.removesuffix(_IMAGE)
            if name == image.stem:
                self.problems.report(image, "missing annotation", f"only names that end in {_IMAGE} have one")
                continue
            folder = labels / image.parent.relative_to(images)
            mask = finder.find(folder, f"{name}{_MASK}", MASK_SUFFIXES)
            if mask is None:
                missing = folder / f"{name}{_MASK}.png"
                self.problems.report(missing, "missing annotation", f"{image.name} has none")
            else:
                self._add(name, image, mask)

    def _read_values(self, path: Path) -> np.ndarray:
        return self._train_ids[read_mask(path)].astype(np.int32)

    def _why_absent(self) -> str:
        return f"; {self._pixels[IGNORE]:,} of {self._pixels.sum():,} pixels have label ids that are not trained on"


def cityscapes_classes() -> tuple[str, ...]:
    """The names of the nineteen classes, in the order of their training ids."""
    evaluated = [known for known in Cityscapes.classes if 0 <= known.train_id < IGNORE and known.id >= 0]
    return tuple(known.name for known in sorted(evaluated, key=lambda known: known.train_id))


def split_images(root: Path, split: str) -> list[Path]:
    """The image files of a split."""
    return images_below(root / "leftImg8bit" / split).images


def available_splits(root: Path) -> list[str]:
    """The splits that have images and labels."""
    return [name for name in SPLITS if (root / "leftImg8bit" / name).is_dir() and (root / "gtFine" / name).is_dir()]
