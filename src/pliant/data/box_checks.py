"""Which annotated boxes can be used, and how they are cut to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1

# Writers count pixels from 0 or from 1; a box may stand out by this much without anyone being wrong.
TOLERANCE = 1.0


def degenerate(corners: Corners) -> str | None:
    """Say why four corners do not span a box, or return None if they do.

    They are compared as they were annotated. In an annotation of inclusive pixels ``xmin == xmax`` could
    mean a box one pixel wide; in practice it is a click that was never dragged, and it counts as zero area.
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
    """The kind of the problem if a box was written in parts of the image's size instead of pixels, else None.

    All four numbers as they are written then lie in 0 to 1; in pixels, this would be a box within the first one.
    """
    return "normalised box" if all(0 <= number <= 1 for number in numbers) else None


def clip(corners: Corners, height: int, width: int) -> tuple[Corners | None, str | None]:
    """Cut a box given by continuous pixel edges to an image.

    Returns:
        The box inside the image, or None if nothing of it is there; and the kind of the problem, or None
        if the box was inside already (to within one pixel).
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
