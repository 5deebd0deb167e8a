"""What a detector gets wrong at one threshold of the score: confusions, misses and false detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pliant.engine.metrics import Curves, EvaluatedImage

OVERLAP = 0.5  # intersection over union from which a detection finds an object
_USUAL_THRESHOLD = 0.5


def best_threshold(images: Iterable[EvaluatedImage], classes: int) -> float:
    """The score, in hundredths, from which the mean F1 of the classes is highest at an overlap of 0.5.

    Detections take objects of their own class as in `confusion`, so one pass by falling score serves all thresholds.

    Args:
        images: The images.
        classes: The number of classes, C.

    Returns:
        The lowest of the thresholds that are equally good; 0.5 if nothing is found.
    """
    thresholds = np.arange(1, 100, dtype=np.float32) / np.float32(100)
    found, right = (np.zeros((classes + 1, len(thresholds) + 1)) for _ in range(2))  # by thresholds reached
    objects = np.zeros(classes + 1)
    for image in images:
        ignored = _ignored(image).numpy()
        truth = image.truth["labels"].numpy()
        np.add.at(objects, truth[~ignored], 1)
        order = image.found["scores"].argsort(descending=True, stable=True)
        scores, labels = (image.found[key][order].numpy() for key in ("scores", "labels"))
        overlap = box_iou(image.found["boxes"][order].double(), image.truth["boxes"].double()).numpy()
        overlap[overlap < OVERLAP] = 0
        own = np.where((labels[:, None] == truth) & ~ignored, overlap, 0.0)
        reached = np.searchsorted(thresholds, scores.astype(np.float32), side="right")
        counts = ~(overlap[:, ignored] > 0).any(axis=1)  # unless it finds an object, below
        for k in np.flatnonzero(own.any(axis=1)):
            best = own[k].argmax()
            if own[k, best] > 0:
                own[:, best] = 0
                counts[k] = True
                right[labels[k], reached[k]] += 1
        np.add.at(found, (labels[counts], reached[counts]), 1)
    there = objects > 0
    found, right = (values[there, :0:-1].cumsum(axis=1)[:, ::-1] for values in (found, right))  # [C, 99]
    mean = (2 * right / (objects[there, None] + found)).mean(axis=0) if there.any() else np.zeros(len(thresholds))
    return float(round(float(thresholds[mean.argmax()]), 2)) if mean.any() else _USUAL_THRESHOLD


def _ignored(image: EvaluatedImage) -> Tensor:
    """The objects that are difficult or crowds, bool [L]."""
    ignored = torch.zeros(len(image.truth["labels"]), dtype=torch.bool)
    for key in ("difficult", "iscrowd"):
        if key in image.truth:
            ignored |= image.truth[key].bool()
    return ignored


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
    ignored = _ignored(image)
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
