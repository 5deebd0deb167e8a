"""The base of all data sets that are read from files: scanning, reading, damaged images, class counts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pliant.data.images import ImageHeader, UnreadableFileError, read_image, scan_image
from pliant.data.problems import DataError, ProblemLog

_log = logging.getLogger("pliant.data")

Transforms = Callable[[Any, Any], tuple[Any, Any]]


class SizeFormat(Protocol):
    """Reads the size of an image in its file of annotations."""

    def claimed_size(self, path: Path) -> tuple[float, float] | None:
        """The height and width that a file says its image has; None if it does not.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not of this format.
        """


class ImageSet(Dataset[tuple[Any, Any]]):
    """Images in files, which are found and checked when the set is opened and read on access.

    If the pixels of an image turn out to be damaged, this is logged with the path, and the next usable image takes its
    place, always the same one. After `skip_damaged` the sample is None instead, since no image may be evaluated twice.
    In strict mode a damaged image is a `DataError`. A folder that has disappeared always is.

    Attributes:
        classes: names of the classes.
        problems: defects that were found.
        paths: image file of each sample.
        sizes: (height, width) of each sample, in pixels.
        turned: images with an EXIF orientation, and its number. The orientation is not applied; only images are listed
            for which nothing shows whether their annotations refer to the stored pixels.
    """

    classes: tuple[str, ...]
    unit = "image"  # what `class_counts` counts
    annotated = True  # whether there is anything to evaluate by

    def __init__(
        self, root: Path, transforms: Transforms | None, strict: bool, only: Collection[Path] | None = None
    ) -> None:
        self.root = root
        self._only = None if only is None else frozenset(only)
        self.transforms = transforms
        self.problems = ProblemLog(strict=strict)
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        self.turned: dict[Path, int] = {}
        self._damaged: set[int] = set()
        self._skipped: torch.Tensor | None = None

    def _load(self, index: int) -> tuple[Any, Any]:
        raise NotImplementedError

    def _leaves_out(self, path: Path | None) -> bool:
        """Whether an image is none of those that the data set was opened for."""
        return self._only is not None and path is not None and path not in self._only

    def _scan_image(self, path: Path) -> ImageHeader | None:
        """The header of an image, or None if it cannot be used, which is reported."""
        try:
            return scan_image(path)
        except UnreadableFileError as error:
            self.problems.report(path, "unreadable image", str(error))
            return None

    def _listed(self, samples: Sequence[tuple[Path | None, Path | None]]) -> Iterator[tuple[int, Path, Path | None]]:
        """The samples (image, annotation) to open, each image once, with their positions; others are reported."""
        seen: dict[Path, Path | None] = {}
        for position, (image, annotation) in enumerate(samples):
            if self._leaves_out(image):
                continue
            if image is None:
                assert annotation is not None
                if self._only is None:
                    self.problems.report(annotation, "missing image", "there is no image of this name, or several")
            elif image in seen:
                detail = f"{image.name} has another annotation, {seen[image]}"
                self.problems.report(annotation or image, "duplicate id", detail)
            else:
                seen[image] = annotation
                yield position, image, annotation

    def _opened(
        self, samples: Sequence[tuple[Path | None, Path | None]], form: SizeFormat
    ) -> Iterator[tuple[int, Path, Path | None, ImageHeader]]:
        """The samples of `_listed` whose images can be used, with their headers; others are reported."""
        for position, image, annotation in self._listed(samples):
            header = self._scan_image(image)
            if header is not None and annotation is not None:
                header = self._agreed(image, annotation, header, form)
            if header is not None:
                yield position, image, annotation, header

    def _agreed(self, image: Path, annotation: Path, header: ImageHeader, form: SizeFormat) -> ImageHeader | None:
        """The header of an image whose annotation agrees with its size, or None, which is reported."""
        try:
            claimed = form.claimed_size(annotation)
        except (OSError, ValueError) as error:
            self.problems.report(annotation, "unreadable annotation", str(error))
            return None
        if claimed is not None and claimed != header.size:
            detail = f"annotated {claimed[1]:g}x{claimed[0]:g}, but {image.name} is {header.describe(claimed)}"
            self.problems.report(annotation, "size mismatch", detail)
            return None
        return header if claimed is None else header.settled()

    def _append(self, path: Path, header: ImageHeader) -> None:
        self.paths.append(path)
        self.sizes.append(header.size)
        if header.orientation != 1:
            self.turned[path] = header.orientation

    def _require_samples(self) -> None:
        if not self.paths:
            raise DataError(self.root, f"no usable image: {self._why_empty()}")

    def _why_empty(self) -> str:
        return self.problems.summary() if len(self.problems) else "none is listed"

    def class_counts(self) -> list[int]:
        """The number of images, boxes or pixels (see `unit`) to train on for each class, in the order of `classes`."""
        raise NotImplementedError

    def classes_in(self, index: int) -> frozenset[int]:
        """The indices in `classes` of what is in a sample, without reading the image; empty if there is nothing."""
        return frozenset()

    def absent(self, most: int = 10) -> str | None:
        """A line naming the classes that have nothing to train on, and why; None if there are none."""
        names = [name for name, count in zip(self.classes, self.class_counts(), strict=True) if not count]
        if not names:
            return None
        return f"{some(names, most)}: there is no {self.unit} to learn from{self._why_absent()}"

    def _why_absent(self) -> str:
        return ""

    def __len__(self) -> int:
        return len(self.paths)

    def skip_damaged(self) -> None:
        """Return None for images whose pixels are damaged. `skipped` includes those that DataLoader workers skipped."""
        self._skipped = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    @property
    def skipped(self) -> list[Path]:
        """The images for which None was returned."""
        return [] if self._skipped is None else [self.paths[index] for index in self._skipped.nonzero()]

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        for step in range(len(self)):
            sample = self._try((index + step) % len(self))
            if sample is not None:
                return sample if self.transforms is None else self.transforms(*sample)
            if self._skipped is not None:
                self._skipped[index] = True
                return None
        raise DataError(self.root, f"no image can be read: {self.problems.summary()}")

    def original(self, index: int) -> tuple[Any, Any]:
        """An image, uint8 `[3, H, W]`, and its target as they are in the files, before the transforms.

        Raises:
            UnreadableFileError: if they cannot be read.
        """
        return self._load(index)

    def _read(self, index: int) -> tv_tensors.Image:
        """The image of a sample, in the size it had when the data set was opened."""
        image = read_image(self.paths[index])
        height, width = self.sizes[index]
        if image.shape[-2:] != (height, width):
            raise UnreadableFileError(
                self.paths[index], f"it was {width}x{height} and is now {image.shape[-1]}x{image.shape[-2]}"
            )
        return image

    def _try(self, index: int) -> tuple[Any, Any] | None:
        if index in self._damaged:
            return None
        try:
            return self._load(index)
        except UnreadableFileError as error:
            if not _has_files(error.path.parent):
                raise DataError(
                    error.path.parent, "existed when the data set was opened, and is now missing or empty"
                ) from error
            self._damaged.add(index)
            kind = "unreadable image" if error.path == self.paths[index] else "unreadable annotation"
            if self.problems.report(error.path, kind, str(error)):
                _log.warning("%s cannot be read and is skipped: %s", error.path, error)
            return None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.root)!r}: {len(self)} images, {len(self.classes)} classes, "
            f"{len(self.problems)} problems)"
        )


def some(names: Sequence[str], most: int) -> str:
    """Up to `most` names as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _has_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def check_classes(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The class names that the user gave, as a tuple.

    Raises:
        TypeError: if they are a single string.
        ValueError: if they are empty or a name occurs twice.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        raise TypeError(f"classes must be a sequence of names, got the string {classes!r}")
    names = tuple(classes)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"classes must be one or more different names, got {names}")
    return names
