"""What all data sets read from files have in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pliant.data.boxes import Corners
from pliant.data.images import UnreadableFileError, read_image
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
    """

    classes: tuple[str, ...]

    def __init__(self, root: Path, transforms: Transforms | None, strict: bool) -> None:
        self.root = root
        self.transforms = transforms
        self.problems = ProblemLog(strict=strict)
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        self._damaged: set[int] = set()
        self._skipped: torch.Tensor | None = None

    def _load(self, index: int) -> tuple[Any, Any]:
        raise NotImplementedError

    def _require_samples(self) -> None:
        if not self.paths:
            raise DataError(self.root, f"no usable image. {self.problems.summary()}")

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
        raise DataError(self.root, f"no image can be read. {self.problems.summary()}")

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

    def trainable(self) -> bool:
        """Whether any box is neither difficult nor a crowd."""
        return any(not (hard or crowd) for hard, crowd in zip(self.difficult, self.crowd, strict=True))


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
    """

    def __init__(self, root: Path, transforms: Transforms | None, strict: bool, require_boxes: bool) -> None:
        super().__init__(root, transforms, strict)
        self.require_boxes = require_boxes
        self.image_ids: list[int] = []
        self._boxes: list[Boxes] = []

    def _add(self, path: Path, size: tuple[int, int], boxes: Boxes, image_id: int) -> bool:
        if self.require_boxes and not boxes.trainable():
            return False
        self.paths.append(path)
        self.sizes.append(size)
        self.image_ids.append(image_id)
        self._boxes.append(boxes)
        return True

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
