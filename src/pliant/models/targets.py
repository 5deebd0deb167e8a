"""Checks of the targets that detectors are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN


class ChecksTargets(GeneralizedRCNN):
    """torchvision's detector with a check of the targets in training. `config` holds the number of classes."""

    config: dict[str, Any]

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if self.training:
            check_targets(images, targets, self.config["num_classes"])
        return super().forward(images, targets)


def check_targets(images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None, num_classes: int) -> None:
    """Check the targets of a training step before anything is computed.

    Args:
        images: the images of the step.
        targets: for each image `boxes`, float `[L, 4]` (x0, y0, x1, y1), and `labels`, int64 `[L]`, from 1 to
            `num_classes - 1`.
        num_classes: number of classes, background included.

    Raises:
        TypeError: if a value is not a tensor or has the wrong dtype.
        ValueError: if targets or keys are missing, shapes or lengths differ, a label is out of range, or a box is not
            finite or has no width or height.
    """
    if targets is None:
        raise ValueError("targets are needed in training, got None")
    if len(targets) != len(images):
        raise ValueError(f"there must be one target per image, got {len(targets)} targets for {len(images)} images")
    for place, target in enumerate(targets):
        missing = [key for key in ("boxes", "labels") if key not in target]
        if missing:
            raise ValueError(f"targets[{place}] must have boxes and labels, but lacks {' and '.join(missing)}")
        boxes, labels = target["boxes"], target["labels"]
        where = f"in targets[{place}]"
        _check_boxes(boxes, where)
        _check_labels(labels, num_classes, where)
        if len(labels) != len(boxes):
            raise ValueError(
                f"there must be one label per box, got {len(labels)} labels for {len(boxes)} boxes {where}"
            )


def _check_boxes(boxes: Any, where: str) -> None:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be a tensor, got {type(boxes).__name__} {where}")
    if not boxes.is_floating_point():
        raise TypeError(f"boxes must be floating-point numbers, got {boxes.dtype} {where}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape [L, 4], got {list(boxes.shape)} {where}")
    wrong = ~(boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes must be finite, with x0 < x1 and y0 < y1, got {boxes[first].tolist()} in row {first} {where}"
        )


def _check_labels(labels: Any, num_classes: int, where: str) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__} {where}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype} {where}")
    if labels.dim() != 1:
        raise ValueError(f"labels must have shape [L], got {list(labels.shape)} {where}")
    if len(labels) and not (labels.min() >= 1 and labels.max() < num_classes):
        raise ValueError(
            f"labels must lie between 1 and {num_classes - 1}, got {int(labels.min())} to {int(labels.max())} {where}"
        )
