"""What the page of `pliant eval` shows besides the results: tables, charts and images, which tasks put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pliant.data import ImageSet
from pliant.data.images import UnreadableFileError
from pliant.engine.extremes import ends
from pliant.pictures import charts
from pliant.pictures.report import Chart, Example, Gallery, Section, Table

T = TypeVar("T")

_LONGEST_SIDE = 720  # of a picture, in pixels
_MOST_CONFUSIONS = 15  # in the table
NONE = "none"  # the name of no class in a matrix


@dataclass(frozen=True)
class Evidence:
    """What a task adds to the page of `pliant eval`.

    Attributes:
        columns: Further columns of the table of classes: a number for each class by heading; NaN is left empty.
        note: What these columns are.
        sections: Further parts of the page.
    """

    columns: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    sections: Sequence[Section] = ()


def confusion_sections(matrix: Tensor, rows: Sequence[str], columns: Sequence[str], note: str) -> list[Section]:
    """A matrix of confusions as a chart, and the most frequent ones as a table if there are any.

    Args:
        matrix: Counts [N, M]; rows are the truth, columns the prediction. Row i and column i are the same class.
        rows, columns: Names of the classes.
        note: What is counted.
    """
    counts = np.asarray(matrix).astype(float)
    sections: list[Section] = [Chart("Confusion matrix", note, charts.confusion(counts, rows, columns))]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = [(counts[place], place) for place in np.ndindex(*counts.shape) if place[0] != place[1] and counts[place]]
    wrong.sort(key=lambda item: (-item[0], item[1]))
    lines = [
        (rows[row], columns[column], f"{count:,.0f}", "" if rows[row] == NONE else f"{100 * shares[row, column]:.1f} %")
        for count, (row, column) in wrong[:_MOST_CONFUSIONS]
    ]
    if lines:
        headings = ("truth", "predicted", "number", "of this truth")
        of_all = f"The largest {len(lines)} of {len(wrong)} numbers beside the diagonal."
        sections.append(Table("Most frequent confusions", of_all, headings, lines))
    return sections


def rates(matrix: Tensor) -> dict[str, list[float]]:
    """Precision, recall and F1 of each class of a matrix of counts [C, C] or [C + 1, C + 1]; NaN for 0 / 0."""
    counts = matrix.double()
    right, objects, found = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    values = {"precision": right / found, "recall": right / objects, "F1": 2 * right / (objects + found)}
    return {name: value.tolist() for name, value in values.items()}


def galleries(
    ranked: Sequence[T], dataset: ImageSet, measure: str, example: Callable[[T], tuple[int, str, Pictures]]
) -> list[Section]:
    """The worst and the best images.

    Args:
        ranked: Images from the worst to the best.
        dataset: The data set they belong to.
        measure: How they are ranked.
        example: Gives the index of an image in the data set, its result in words, and the function that draws it.
    """
    sections: list[Section] = []
    for title, images in zip(("Worst images", "Best images"), ends(list(ranked)), strict=True):
        shown = []
        for image in images:
            index, note, pictures = example(image)
            try:
                pixels, target = dataset.original(index)
            except UnreadableFileError:  # since it was evaluated
                continue
            shown.append(Example(dataset.paths[index].name, note, pictures(pixels.as_subclass(Tensor), target)))
        if shown:
            sections.append(Gallery(title, measure, shown))
    return sections


Pictures = Callable[[Tensor, Any], dict[str, Image.Image]]
"""Draws an image, uint8 [3, H, W], with its target: pictures by their captions."""


def fitted(image: Tensor) -> tuple[Tensor, float]:
    """An image, uint8 [3, H, W], at the size of a picture on the page, and the factor by which it is larger."""
    height, width = image.shape[1:]
    factor = min(1.0, _LONGEST_SIDE / max(height, width))
    if factor == 1:
        return image, 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).resize(size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1), factor
