"""Checks of annotated boxes, and clipping to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pliant.data.problems import ProblemLog

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1

# Annotation tools count pixels from 0 or from 1, so a box may exceed the image by this many pixels.
TOLERANCE = 1.0


def degenerate(corners: Corners) -> str | None:
    """The reason why four corners do not span a box, or None if they do.

    The corners are compared as annotated. With inclusive pixels `xmin == xmax` could mean a box one pixel wide, but in
    practice it is a click that was never dragged, so it counts as zero area.
    """
    x0, y0, x1, y1 = corners
    if not all(math.isfinite(value) for value in corners):
        return "non-numeric box"
    if x1 < x0 or y1 < y0:
        return "inverted box"
    if x1 == x0 or y1 == y0:
        return "zero-area box"
    return None


def normalised(numbers: Sequence[float]) -> str | None:
    """The kind of problem if a box was written in fractions of the image's size instead of pixels, otherwise None.

    All four numbers as written are then in 0 to 1. In pixels, this would be a box within the first pixel.
    """
    return "normalised box" if all(0 <= number <= 1 for number in numbers) else None


def clip(corners: Corners, height: int, width: int) -> tuple[Corners | None, str | None]:
    """Clip a box with continuous pixel edges to an image.

    Returns:
        The clipped box, or None if nothing is left; and the kind of problem, or None if the box was inside to within
        one pixel.
    """
    x0, y0, x1, y1 = corners
    limits = np.array([width, height, width, height], dtype=np.float64)
    inside = np.clip(corners, 0.0, limits)
    stored = inside.astype(np.float32)
    if stored[2] <= stored[0] or stored[3] <= stored[1]:
        return None, "box outside"
    overhang = max(-x0, -y0, x1 - width, y1 - height)
    left, top, right, bottom = inside.tolist()
    return (left, top, right, bottom), "box partly outside" if overhang > TOLERANCE else None


def clipped(corners: Corners, size: tuple[int, int], path: Path, where: str, problems: ProblemLog) -> Corners | None:
    """A box clipped to an image of `size` (height, width), or None; what was cut off or left out is reported.

    Args:
        corners: the box, as in `clip`.
        size: height and width of the image.
        path: the file of the annotation.
        where: the annotation in it, as text.
        problems: where to report.
    """
    box, kind = clip(corners, *size)
    if kind is not None:
        detail = f"{where} in an image of {size[1]}x{size[0]}"
        problems.report(path, kind, detail, "skipped" if box is None else "clipped")
    return box
