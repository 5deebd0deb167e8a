"""Images sorted into one folder per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pliant.data.files import is_text
from pliant.data.image_set import ImageSet, Transforms, check_classes
from pliant.data.images import IMAGE_SUFFIXES, images_below
from pliant.data.problems import DataError


class ImageFolder(ImageSet):
    """Images at `SPLIT/CLASS/.../NAME.jpg`, the usual layout of ImageNet, in any supported image format.

    A sample is `(image, label)`: a uint8 `tv_tensors.Image` `[3, H, W]` and an int, the index in `classes`. All image
    files are opened once without decoding them, which takes a minute or two for ImageNet's 1.3 million. Files with
    other suffixes are reported; names that begin with a dot are ignored.

    Args:
        root: folder that contains one folder per split.
        split: name of a split.
        classes: names of the classes in order, by default those of the split's folders, sorted. Folders with other
            names are reported and skipped.
        transforms: called with image and label.
        strict: raise at the first problem.
        only: image files to use; None for all.

    Raises:
        DataError: if the split is missing or no image is usable; in strict mode at any problem.
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
            if self._leaves_out(path):
                continue
            header = self._scan_image(path)
            if header is not None:
                self._append(path, header)
                self.labels.append(label)

    def class_counts(self) -> list[int]:
        """The number of images of each class."""
        counts = Counter(self.labels)
        return [counts[label] for label in range(len(self.classes))]

    def classes_in(self, index: int) -> frozenset[int]:
        """See `ImageSet`."""
        return frozenset((self.labels[index],))

    def _load(self, index: int) -> tuple[Any, int]:
        return self._read(index), self.labels[index]


def split_images(root: Path, split: str) -> list[Path]:
    """The image files of a split."""
    return [image for folder in _folders(root / split).values() for image in images_below(folder).images]


def has_classes(root: Path, split: str) -> bool:
    """Whether two folders of a split have an image; it stops at the second."""
    with_image = (
        folder
        for folder in _folders(root / split).values()
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))
    )
    return next(with_image, None) is not None and next(with_image, None) is not None


class LabelledImages(ImageSet):
    """A list of images, each with the name of its class.

    A sample is that of `ImageFolder`.

    Args:
        root: folder of the data.
        images: file and class of each image.
        classes: names of the classes in order. Images of other classes are reported and skipped.
        transforms: called with image and label.
        strict: raise at the first problem.
        only: image files to use; None for all.

    Raises:
        DataError: if no image is usable; in strict mode at any problem.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[tuple[Path, str]],
        *,
        classes: Sequence[str],
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, only)
        self.classes = check_classes(classes) or ()
        self.labels: list[int] = []
        numbers = {name: label for label, name in enumerate(self.classes)}
        for path, name in images:
            if self._leaves_out(path):
                continue
            if name not in numbers:
                self.problems.report(path, "unknown class", f"{name!r} is not one of the {len(numbers)} classes")
            elif (header := self._scan_image(path)) is not None:
                self._append(path, header)
                self.labels.append(numbers[name])
        self._require_samples()

    def class_counts(self) -> list[int]:
        """The number of images of each class."""
        counts = Counter(self.labels)
        return [counts[label] for label in range(len(self.classes))]

    def classes_in(self, index: int) -> frozenset[int]:
        """See `ImageSet`."""
        return frozenset((self.labels[index],))

    def _load(self, index: int) -> tuple[Any, int]:
        return self._read(index), self.labels[index]


def available_splits(root: Path) -> list[str]:
    """The folders of `root` that contain folders, which are taken as classes."""
    return [name for name, folder in _folders(root).items() if _folders(folder)]


def _folders(root: Path) -> dict[str, Path]:
    """The visible folders in a folder by name, sorted."""
    if not root.is_dir():
        return {}
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: path for path in found}
