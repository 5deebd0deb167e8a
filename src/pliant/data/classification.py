"""Images sorted into a folder for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pliant.data.files import is_text
from pliant.data.image_set import ImageSet, Transforms, check_classes
from pliant.data.images import IMAGE_SUFFIXES, images_below
from pliant.data.problems import DataError


class ImageFolder(ImageSet):
    """Images at ``SPLIT/CLASS/.../NAME.jpg``, as ImageNet is usually unpacked, in any format that is read here.

    A sample is ``(image, label)``: a uint8 `tv_tensors.Image` of shape [3, H, W] and an int, the position in
    `classes`. All image files are opened once, without decoding them (ImageNet's million takes a minute or two).

    Args:
        root: A folder with a folder for each split.
        split: The name of one.
        classes: The names to use, in order; None for those of the split's folders, sorted. Folders of other names
            are reported and skipped.
        transforms: Called with image and label.
        strict: Raise at the first problem.

    Files of other endings are reported; hidden ones, whose names begin with a dot, count as absent.

    Raises:
        DataError: If the split is missing or no image is usable; in strict mode at any problem.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(Path(root), transforms, strict)
        names = check_classes(classes)
        there = available_splits(self.root)
        if split not in there:
            raise DataError(
                self.root,
                f"there is no split {split!r}, a folder that holds a folder for each class; "
                f"splits there: {', '.join(there) or 'none'}",
            )
        self.split = split
        folders = _folders(self.root / split)
        for name in [name for name in folders if not is_text(name)]:
            self.problems.report(folders.pop(name), "unknown class", f"{name!r} is no text")
        self.classes = tuple(folders) if names is None else names
        self.labels: list[int] = []
        for name, folder in folders.items():
            if name in self.classes:
                self._scan(folder, name)
            else:
                self.problems.report(folder, "unknown class", f"{name!r} is not one of the {len(self.classes)} classes")
        self._require_samples()

    def _scan(self, folder: Path, name: str) -> None:
        label, found = self.classes.index(name), images_below(folder)
        for path in found.others:
            self.problems.report(path, "not an image", f"its ending is none of {' '.join(IMAGE_SUFFIXES)}")
        if not found.images:
            self.problems.report(folder, "empty class", "there is no image in this folder or below it")
        for path in found.images:
            header = self._scan_image(path)
            if header is not None:
                self._append(path, header)
                self.labels.append(label)

    def class_counts(self) -> list[int]:
        """The images of each class."""
        counts = Counter(self.labels)
        return [counts[label] for label in range(len(self.classes))]

    def _load(self, index: int) -> tuple[Any, int]:
        return self._read(index), self.labels[index]


def available_splits(root: Path) -> list[str]:
    """The folders of `root` that hold folders, which are taken for classes."""
    return [name for name, folder in _folders(root).items() if _folders(folder)]


def _folders(root: Path) -> dict[str, Path]:
    """The folders in a folder by their names, sorted; hidden ones are not counted."""
    if not root.is_dir():
        return {}
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: path for path in found}
