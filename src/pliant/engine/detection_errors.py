"""What a detector gets wrong at one threshold of the score: confusions, misses and false detections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pliant.engine.metrics import Curves, EvaluatedImage

OVERLAP = 0.5  # intersection over union from which a detection finds an object
_USUAL_THRESHOLD = 0.5


def best_threshold(curves: Curves) -> float:
    """The score, in hundredths, from which the mean F1 of the classes is highest at an overlap of 0.5; 0.5 if none is.

    The lowest of several that are equally good is returned.
    """
    precision, scores = (values[0][:, known(curves)] for values in (curves.precision, curves.scores))  # [101, K]
    recall = recalls(curves)[:, None]
    f1_at = np.divide(2 * precision * recall, precision + recall, out=np.zeros_like(precision), where=precision > 0)
    means = []
    thresholds = np.arange(1, 100) / 100
    for threshold in thresholds:
        reached = ((scores >= threshold) & (precision > 0)).sum(axis=0)  # number of recalls [K]
        of_class = np.take_along_axis(f1_at, np.maximum(reached - 1, 0)[None], axis=0)[0] * (reached > 0)
        means.append(of_class.mean() if of_class.size else 0.0)
    return float(thresholds[int(np.argmax(means))]) if max(means) > 0 else _USUAL_THRESHOLD


def recalls(curves: Curves) -> np.ndarray:
    """The recalls of the curves [101]."""
    return np.linspace(0, 1, curves.precision.shape[1])


def known(curves: Curves) -> np.ndarray:
    """Which classes of the curves have objects, bool [K]."""
    return (curves.precision[0] >= 0).all(axis=0)


def confusion(image: EvaluatedImage, classes: int, threshold: float) -> Tensor:
    """Count which objects of an image were found as what.

    Detections of the threshold or more are taken by falling score. Each first takes the free object of its own class
    that it overlaps most, by at least 0.5; then those that are left take free objects of other classes in the same way.
    A detection that is left and overlaps a difficult object or a crowd by at least 0.5 does not count.

    Args:
        image: The image with its detections.
        classes: The number of classes, C.
        threshold: The lowest score of a detection that counts.

    Returns:
        Counts [C + 1, C + 1], int64. Rows are the classes of the objects; the last row is for no object. Columns are
        the classes of the detections; the last column is for no detection.
    """
    keep = image.found["scores"] >= threshold
    order = image.found["scores"][keep].argsort(descending=True, stable=True)
    boxes, labels = (image.found[key][keep][order] for key in ("boxes", "labels"))
    ignored = torch.zeros(len(image.truth["labels"]), dtype=torch.bool)
    for key in ("difficult", "iscrowd"):
        if key in image.truth:
            ignored |= image.truth[key].bool()
    overlap = box_iou(boxes.double(), image.truth["boxes"].double())  # [K, L]
    objects = image.truth["labels"]
    free = ~ignored
    matrix = torch.zeros(classes + 1, classes + 1, dtype=torch.int64)
    left = list(range(len(boxes)))
    for own_class in (True, False):
        rest = []
        for k in left:
            allowed = free & ((objects == labels[k]) == own_class)
            best = _best(overlap[k], allowed)
            if best is None:
                rest.append(k)
                continue
            free[best] = False
            matrix[objects[best] - 1, labels[k] - 1] += 1
        left = rest
    for k in left:
        if _best(overlap[k], ignored) is None:
            matrix[-1, labels[k] - 1] += 1
    for label in objects[free].tolist():
        matrix[label - 1, -1] += 1
    return matrix


def f1(matrix: Tensor) -> float:
    """The F1 of an image's counts: right detections over the mean of objects and detections; 1 without either."""
    right = int(matrix[:-1, :-1].trace())
    objects, detections = int(matrix[:-1].sum()), int(matrix[:, :-1].sum())
    return 2 * right / (objects + detections) if objects + detections else 1.0


def _best(overlap: Tensor, allowed: Tensor) -> int | None:
    """The allowed object that a detection overlaps most; None if none is overlapped by 0.5."""
    if not allowed.any():
        return None
    masked = torch.where(allowed, overlap, -1.0)
    best = int(masked.argmax())
    return best if masked[best] >= OVERLAP else None


def total(matrices: Sequence[Tensor], classes: int) -> Tensor:
    """The sum of the counts of images."""
    return torch.stack([torch.zeros(classes + 1, classes + 1, dtype=torch.int64), *matrices]).sum(dim=0)
