"""The base of detection data sets: boxes, their targets, and the images that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from pliant.data.box_checks import Corners
from pliant.data.image_set import ImageSet, Transforms, some
from pliant.data.images import ImageHeader


@dataclass
class Boxes:
    """The annotated boxes of one image, as columns of equal length."""

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
        """Append a box. `area` in square pixels is by default that of the box."""
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
        """The label of each box, and whether it is trained on, being neither difficult nor a crowd."""
        for label, hard, crowd in zip(self.labels, self.difficult, self.crowd, strict=True):
            yield label, not (hard or crowd)

    def trainable(self) -> bool:
        """Whether any box is neither difficult nor a crowd."""
        return any(usable for _, usable in self.usable())


def detection_target(boxes: Boxes, size: tuple[int, int], image_id: int) -> dict[str, Any]:
    """The target of a detection sample, see `DetectionSet`."""
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

    A sample is `(image, target)`: a uint8 `tv_tensors.Image` `[3, H, W]`, and a dict with

    * `boxes`: `tv_tensors.BoundingBoxes`, float32 `[L, 4]`, (x0, y0, x1, y1) with continuous pixel edges
    * `labels`: int64 `[L]`, the index in `classes` plus one (0 is the background)
    * `difficult`, `truncated`, `iscrowd`: bool `[L]`
    * `area`: float32 `[L]`, in square pixels of the stored image
    * `image_id`: int

    Attributes:
        classes: names of the classes, without the background.
        image_ids: `image_id` of each sample.
        left_out: images that `require_boxes` leaves out, because they have no box to train on.
    """

    unit = "box"

    def __init__(
        self,
        root: Path,
        transforms: Transforms | None,
        strict: bool,
        require_boxes: bool,
        only: Collection[Path] | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, only)
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
        """The number of boxes of each class that are neither difficult nor crowds."""
        counts = Counter(label for boxes in self._boxes for label, usable in boxes.usable() if usable)
        return [counts[label] for label in range(1, len(self.classes) + 1)]

    def classes_in(self, index: int) -> frozenset[int]:
        """See `ImageSet`."""
        return frozenset(label - 1 for label in self._boxes[index].labels)

    def _why_absent(self) -> str:
        absent = {label for label, count in enumerate(self.class_counts(), start=1) if not count}
        unused = sum(label in absent for boxes in self._boxes for label in boxes.labels)
        return f" (boxes that are difficult or crowds: {unused})" if unused else ""

    def target(self, index: int) -> dict[str, Any]:
        """The target of a sample, without reading or transforming the image."""
        return detection_target(self._boxes[index], self.sizes[index], self.image_ids[index])

    def _load(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        return self._read(index), self.target(index)
