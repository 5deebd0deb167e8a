"""What all data sets read from files have in common."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pliant.data.boxes import Corners
from pliant.data.images import ImageHeader, UnreadableFileError, read_image, scan_image
from pliant.data.problems import DataError, ProblemLog

_log = logging.getLogger("pliant.data")

Transforms = Callable[[Any, Any], tuple[Any, Any]]


class ImageSet(Dataset[tuple[Any, Any]]):
    """Images in files, found and checked when the set is made, read when they are asked for.

    If the pixels of an image turn out to be damaged only when they are read, that is logged with its path and
    the next usable image takes its place, always the same one; after `skip_damaged`, None does, since an image
    must not be judged twice. In strict mode it is a `DataError`; it always is once a whole folder is gone.

    Attributes:
        classes: The names of the classes.
        problems: What was found wrong.
        paths: The image file of each sample.
        sizes: (height, width) in pixels of each sample.
        turned: The samples' images that EXIF says to turn or mirror, which is not done, with its number for how; only
            those where nothing tells whether their annotations are of the stored pixels.
    """

    classes: tuple[str, ...]
    unit = "image"  # what `class_counts` counts

    def __init__(self, root: Path, transforms: Transforms | None, strict: bool) -> None:
        self.root = root
        self.transforms = transforms
        self.problems = ProblemLog(strict=strict)
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        self.turned: dict[Path, int] = {}
        self._damaged: set[int] = set()
        self._skipped: torch.Tensor | None = None

    def _load(self, index: int) -> tuple[Any, Any]:
        raise NotImplementedError

    def _scan_image(self, path: Path) -> ImageHeader | None:
        """The header of an image; None if it cannot be used, which is reported."""
        try:
            return scan_image(path)
        except UnreadableFileError as error:
            self.problems.report(path, "unreadable image", str(error))
            return None

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
        """How much there is to learn of each class, in the order of `classes`: images, boxes or pixels, see `unit`."""
        raise NotImplementedError

    def absent(self, most: int = 10) -> str | None:
        """One line that names the classes of which there is nothing to learn, and says why; None if there are none."""
        names = [name for name, count in zip(self.classes, self.class_counts(), strict=True) if not count]
        if not names:
            return None
        return f"{some(names, most)}: there is no {self.unit} to learn from{self._why_absent()}"

    def _why_absent(self) -> str:
        return ""

    def __len__(self) -> int:
        return len(self.paths)

    def skip_damaged(self) -> None:
        """From now on an image whose pixels are damaged gives None; the processes of a loader tell `skipped`."""
        self._skipped = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    @property
    def skipped(self) -> list[Path]:
        """The images that have given None."""
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

    def _read(self, index: int) -> tv_tensors.Image:
        """The image of a sample, at the size it had when the data set was made."""
        image = read_image(self.paths[index])
        height, width = self.sizes[index]
        if image.shape[-2:] != (height, width):
            raise UnreadableFileError(
                self.paths[index], f"it was {width}x{height}, and is {image.shape[-1]}x{image.shape[-2]} now"
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
                    error.path.parent, "was there when the data set was opened, and is gone or empty"
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


@dataclass
class Boxes:
    """The annotated boxes of one image, as columns that grow together."""

    corners: list[Corners] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def add(
        self,
        corners: Corners,
        label: int,
        area: float | None = None,
        *,
        difficult: bool = False,
        truncated: bool = False,
        crowd: bool = False,
    ) -> None:
        """Append a box; `area` in square pixels is the box's own unless given."""
        x0, y0, x1, y1 = corners
        self.corners.append(corners)
        self.labels.append(label)
        self.areas.append((x1 - x0) * (y1 - y0) if area is None else area)
        self.difficult.append(difficult)
        self.truncated.append(truncated)
        self.crowd.append(crowd)

    def __len__(self) -> int:
        return len(self.labels)

    def usable(self) -> Iterator[tuple[int, bool]]:
        """The label of each box, and whether it is trained on: neither difficult nor a crowd."""
        for label, hard, crowd in zip(self.labels, self.difficult, self.crowd, strict=True):
            yield label, not (hard or crowd)

    def trainable(self) -> bool:
        """Whether any box is neither difficult nor a crowd."""
        return any(usable for _, usable in self.usable())


def detection_target(boxes: Boxes, size: tuple[int, int], image_id: int) -> dict[str, Any]:
    """The target of a detection sample; see `DetectionSet`."""
    corners = np.asarray(boxes.corners, dtype=np.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(corners), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size
        ),
        "labels": torch.tensor(boxes.labels, dtype=torch.int64),
        "difficult": torch.tensor(boxes.difficult, dtype=torch.bool),
        "truncated": torch.tensor(boxes.truncated, dtype=torch.bool),
        "iscrowd": torch.tensor(boxes.crowd, dtype=torch.bool),
        "area": torch.tensor(boxes.areas, dtype=torch.float32),
        "image_id": image_id,
    }


class DetectionSet(ImageSet):
    """Images with boxes.

    A sample is ``(image, target)``: a uint8 `tv_tensors.Image` of shape [3, H, W] and a dict with

    * ``boxes``: `tv_tensors.BoundingBoxes`, float32 [L, 4], (x0, y0, x1, y1), continuous pixel edges;
    * ``labels``: int64 [L], 1 to C, the position in `classes` plus one (0 is the background);
    * ``difficult``, ``truncated``, ``iscrowd``: bool [L];
    * ``area``: float32 [L], square pixels of the stored image;
    * ``image_id``: int.

    Attributes:
        classes: The C foreground names.
        image_ids: The ``image_id`` of each sample.
        left_out: The images without a box to train on that `require_boxes` leaves out.
    """

    unit = "box"

    def __init__(self, root: Path, transforms: Transforms | None, strict: bool, require_boxes: bool) -> None:
        super().__init__(root, transforms, strict)
        self.require_boxes = require_boxes
        self.image_ids: list[int] = []
        self.left_out: list[Path] = []
        self._boxes: list[Boxes] = []

    def _add(self, path: Path, header: ImageHeader, boxes: Boxes, image_id: int) -> bool:
        if self.require_boxes and not boxes.trainable():
            self.left_out.append(path)
            return False
        self._append(path, header)
        self.image_ids.append(image_id)
        self._boxes.append(boxes)
        return True

    def _why_empty(self) -> str:
        if not self.left_out:
            return super()._why_empty()
        names = some([path.name for path in self.left_out], 10)
        images = "the one readable image has no" if len(self.left_out) == 1 else "the readable images have no"
        problems = f"; {self.problems.summary()}" if len(self.problems) else ""
        return f"{images} box to train on ({names}){problems}"

    def class_counts(self) -> list[int]:
        """The boxes of each class that are neither difficult nor crowds."""
        counts = Counter(label for boxes in self._boxes for label, usable in boxes.usable() if usable)
        return [counts[label] for label in range(1, len(self.classes) + 1)]

    def _why_absent(self) -> str:
        absent = {label for label, count in enumerate(self.class_counts(), start=1) if not count}
        unused = sum(label in absent for boxes in self._boxes for label in boxes.labels)
        return f" (boxes that are difficult or crowds: {unused})" if unused else ""

    def target(self, index: int) -> dict[str, Any]:
        """The target of a sample, without reading or transforming the image."""
        return detection_target(self._boxes[index], self.sizes[index], self.image_ids[index])

    def _load(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        return self._read(index), self.target(index)


def check_classes(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The class names a user gave, as a tuple.

    Raises:
        TypeError: If it is a single string.
        ValueError: If it is empty or a name comes twice.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        raise TypeError(f"classes must be a sequence of names, got the string {classes!r}")
    names = tuple(classes)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"classes must be one or more different names, got {names}")
    return names
