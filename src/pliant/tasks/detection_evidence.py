"""What the page of `pliant eval` shows of a detector: curves, confusions, and its worst and best images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from pliant.data import DetectionSet
from pliant.engine.detection import DetectionModule
from pliant.engine.detection_errors import OVERLAP, best_threshold, confusion, f1, known, recalls, total
from pliant.engine.metrics import Curves, EvaluatedImage
from pliant.pictures import charts
from pliant.pictures.report import Chart
from pliant.pictures.results import draw_boxes
from pliant.tasks.evidence import NONE, Evidence, Pictures, confusion_sections, fitted, galleries, rates

_OVERLAPS = {"0.50": 0, "0.75": 5, "0.90": 8}  # with their places in COCO's curves


@dataclass(frozen=True)
class _Counted:
    index: int
    image: EvaluatedImage
    matrix: Tensor


def detection_evidence(module: DetectionModule, dataset: DetectionSet) -> Evidence:
    """Curves, confusions at the threshold with the best F1, and the images with the lowest and the highest F1 there."""
    classes, curves = module.metrics.classes, module.metrics.curves
    threshold = best_threshold(module.evaluated.values(), len(classes))
    places = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    counted = [
        _Counted(places[image_id], image, confusion(image, len(classes), threshold))
        for image_id, image in module.evaluated.items()
    ]
    ranked = sorted(counted, key=_from_worst_to_best)
    matrix = total([each.matrix for each in counted], len(classes))
    at = f"at a score of {threshold:.2f} or more and an overlap of {OVERLAP} or more"
    measure = (
        f"By the F1 of each image {at}: the number of right detections over the mean of the numbers of objects and of "
        f"detections. Of images with the same F1, those with more boxes come first, among the worst and among the best."
    )
    note = (
        f"Objects and detections {at}. Each detection takes the object of its class that it overlaps most; what is "
        "left may take objects of other classes. In the last column objects are missed, in the last row detections are "
        "false. Difficult objects and crowds do not count. This score has the highest mean F1 of the classes on this "
        "split, so it is too good a choice for it."
    )
    names = (*classes, NONE)
    columns = {name: values[:-1] for name, values in rates(matrix).items()}
    return Evidence(
        {**columns, "objects": matrix[:-1].sum(dim=1).tolist()},
        f"Precision, recall and F1 are {at}; all others are over all scores.",
        [
            *([] if curves is None or not known(curves).any() else [_curves(curves, classes)]),
            *confusion_sections(matrix, names, names, note),
            *galleries(ranked, dataset, measure, lambda each: _example(each, classes, threshold)),
        ],
    )


def _from_worst_to_best(each: _Counted) -> tuple[float, float, int]:
    """F1; where it is equal, images with more boxes are nearer to the end."""
    score = f1(each.matrix)
    return score, (score - 0.5) * int(each.matrix.sum()), each.index


def _curves(curves: Curves, classes: tuple[str, ...]) -> Chart:
    there = known(curves)
    labels = [label for label, is_known in zip(curves.labels, there, strict=True) if is_known]
    precision = np.maximum(curves.precision[:, :, there], 0)  # [10, 101, K]
    svg = charts.precision_recall(
        recalls(curves),
        {classes[label - 1]: precision[0, :, place] for place, label in enumerate(labels)},
        {name: precision[place].mean(axis=1) for name, place in _OVERLAPS.items()},
    )
    note = (
        "COCO's curves over all scores: the highest precision at a recall or above. The number beside a name is the "
        "area under its curve, the average precision."
    )
    return Chart("Precision over recall", note, svg)


def _example(each: _Counted, classes: tuple[str, ...], threshold: float) -> tuple[int, str, Pictures]:
    matrix = each.matrix
    right, confused = int(matrix[:-1, :-1].trace()), int(matrix[:-1, :-1].sum())
    parts = {
        "right": right,
        "of another class": confused - right,
        "missed": int(matrix[:-1, -1].sum()),
        "false": int(matrix[-1, :-1].sum()),
    }
    said = ", ".join(f"{number} {name}" for name, number in parts.items())

    def draw(pixels: Tensor, target: object) -> dict[str, Image.Image]:
        shown, factor = fitted(pixels)
        found, truth = each.image.found, each.image.truth
        keep = found["scores"] >= threshold
        return {
            "truth": draw_boxes(shown, truth["boxes"] * factor, truth["labels"], classes),
            "prediction": draw_boxes(
                shown, found["boxes"][keep] * factor, found["labels"][keep], classes, found["scores"][keep]
            ),
        }

    return each.index, f"F1 {100 * f1(matrix):.1f}: {said}", draw
