"""Average precision as the PASCAL VOC development kit computes it, in its authors' Python form.

Detections of equal score are ranked in the order in which they came, across all images, as the kit ranks them in the
order of its file. At an overlap of exactly the threshold the kit's MATLAB source counts a match (``>=``), and the
Python evaluation of Faster R-CNN's and this method's authors does not (``>``). This module follows the latter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

Interpolation = Literal["11-point", "area"]


def average_precision(true_positive: np.ndarray, positives: int, interpolation: Interpolation) -> float:
    """Average precision of detections sorted by falling score.

    Args:
        true_positive: bool [K]; false is a false positive. Ignored detections are left out.
        positives: The number of objects to find.
        interpolation: ``"11-point"``: the mean over the recalls 0, 0.1, ..., 1 of the highest precision at
            that recall or above (VOC until 2009); ``"area"``: the area under that curve (VOC from 2010).

    Returns:
        0 to 1; NaN if there are no objects.
    """
    if positives == 0:
        return float("nan")
    hits = np.cumsum(true_positive)  # [K]
    recall = hits / positives
    precision = hits / np.arange(1, len(hits) + 1)
    if interpolation == "11-point":
        # i / 10 and hits / positives are the same double where they are the same number.
        best = [precision[recall >= i / 10].max(initial=0.0) for i in range(11)]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(recall, prepend=0.0)
    return float(np.sum(gained * envelope))


def match_detections(boxes: Tensor, truth: Tensor, ignored: Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one class in one image find an object.

    Each detection is compared with the one object it overlaps most, whether or not another found that
    already: a second detection of it is a false positive, even if a neighbour is free. The overlap must be
    above the threshold; the kit's MATLAB source takes one that equals it, too. A detection whose object is ignored
    counts neither way.

    Args:
        boxes: [K, 4], (x0, y0, x1, y1), sorted by falling score.
        truth: [L, 4].
        ignored: bool [L]: objects that are difficult.
        threshold: Of the intersection over union.

    Returns:
        Two bool arrays [K]: true positives, and detections that count.
    """
    hit = np.zeros(len(boxes), dtype=bool)
    counts = np.ones(len(boxes), dtype=bool)
    if len(truth) == 0:
        return hit, counts
    overlaps, objects = box_iou(boxes.double(), truth.double()).max(dim=1)  # [K]
    found: set[int] = set()
    for rank, (overlap, nearest) in enumerate(zip(overlaps.tolist(), objects.tolist(), strict=True)):
        if overlap <= threshold:
            continue
        if ignored[nearest]:
            counts[rank] = False
        elif nearest not in found:
            found.add(nearest)
            hit[rank] = True
    return hit, counts


class VOCAveragePrecision(Metric):
    """VOC's average precision per class and its mean, 11-point and area, at several overlaps.

    `update` takes what torchvision's detectors give and their targets; boxes are (x0, y0, x1, y1) as
    continuous pixel edges, which agrees with the development kit's inclusive pixels. Targets may hold
    ``difficult`` and ``iscrowd`` (bool [L]); such objects are neither required nor punished. Detections of equal score
    are ranked in the order of the updates; an overlap that equals a threshold is no match (see this module).

    Args:
        classes: The number C of foreground classes; labels are 1 to C.
        thresholds: Overlaps a detection must exceed.
    """

    full_state_update = False

    def __init__(self, classes: int, thresholds: Sequence[float] = (0.5, 0.7), **options: Any) -> None:
        super().__init__(**options)
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}")
        self.classes = classes
        self.thresholds = tuple(thresholds)
        self.detections: list[Tensor]
        self.objects: list[Tensor]
        for name in ("detections", "objects"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Any]]) -> None:
        """Add images.

        Args:
            predictions: For each image ``boxes`` [K, 4], ``scores`` [K] and ``labels`` [K].
            targets: For each image ``boxes`` [L, 4], ``labels`` [L] and ``image_id`` (an int that no other
                image has), perhaps ``difficult`` and ``iscrowd`` [L].
        """
        if len(predictions) != len(targets):
            raise ValueError(f"got predictions of {len(predictions)} images and targets of {len(targets)}")
        for prediction, target in zip(predictions, targets, strict=True):
            if "image_id" not in target:
                raise ValueError("targets need image_id, an int that no other image has")
            image_id = int(target["image_id"])
            boxes, labels = _plain(prediction["boxes"]), _plain(prediction["labels"])
            columns = [labels[:, None], _plain(prediction["scores"])[:, None], boxes]
            self.detections.append(_with_id(image_id, columns))  # [K, 7]: id, label, score, box
            boxes, labels = _plain(target["boxes"]), _plain(target["labels"])
            ignored = torch.zeros_like(labels)
            for flag in ("difficult", "iscrowd"):
                if flag in target:
                    ignored = torch.maximum(ignored, _plain(target[flag]))
            self.objects.append(_with_id(image_id, [labels[:, None], ignored[:, None], boxes]))  # [L, 7]

    def compute(self) -> dict[str, Any]:
        """The results.

        Returns:
            For each threshold t and both interpolations ``"t"`` a dict of ``"11-point"`` and ``"area"``, each
            a list of C values in 0..1; NaN for a class without an object.
        """
        detections, objects = _stack(self.detections), _stack(self.objects)
        results: dict[str, Any] = {}
        for threshold in self.thresholds:
            per_class = [self._of_class(detections, objects, label, threshold) for label in range(1, self.classes + 1)]
            results[f"{threshold:g}"] = {
                "11-point": [values[0] for values in per_class],
                "area": [values[1] for values in per_class],
            }
        return results

    def _of_class(self, detections: Tensor, objects: Tensor, label: int, threshold: float) -> tuple[float, float]:
        truth = objects[objects[:, 1] == label]
        found = detections[detections[:, 1] == label]
        # Stable: detections of equal score keep the order in which they came, whatever their images.
        found = found[torch.argsort(found[:, 2], descending=True, stable=True)]
        hits, counts = np.zeros(len(found), dtype=bool), np.zeros(len(found), dtype=bool)
        objects_in = _by_image(truth)
        for image_id, ranks in _by_image(found).items():
            known = truth[objects_in.get(image_id, [])]
            hits[ranks], counts[ranks] = match_detections(found[ranks, 3:], known[:, 3:], known[:, 2] > 0, threshold)
        positives = int((truth[:, 2] == 0).sum())
        ranked = hits[counts]
        return average_precision(ranked, positives, "11-point"), average_precision(ranked, positives, "area")


def _plain(values: Tensor) -> Tensor:
    return values.detach().as_subclass(Tensor).double()


def _with_id(image_id: int, columns: list[Tensor]) -> Tensor:
    rows = torch.cat(columns, dim=1)
    return torch.cat([rows.new_full((len(rows), 1), image_id), rows], dim=1)


def _stack(rows: list[Tensor] | Tensor) -> Tensor:
    # After the states of several processes are gathered they are one tensor.
    if isinstance(rows, Tensor):
        return rows.cpu()
    return torch.cat(rows).cpu() if rows else torch.zeros(0, 7, dtype=torch.float64)


def _by_image(rows: Tensor) -> dict[int, list[int]]:
    """The places of each image's rows, in their order."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, image_id in enumerate(rows[:, 0].tolist()):
        places[int(image_id)].append(place)
    return places
