"""Choosing the places of an image to show: on the background, and on the smallest and the largest object."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Place = tuple[float, float]
_LEAST_OBJECT = 64  # fewest pixels of a piece that is an object


def choose_places(objects: list[tuple[float, Place]], covered: np.ndarray) -> list[tuple[str, Place]]:
    """The places by name; those that an image lacks are left out.

    Args:
        objects: The area and the centre (y, x) of each object.
        covered: Mask of the objects, bool [H, W].
    """
    named = []
    if not covered.all():
        named.append(("background", _innermost(~covered)))
    if len(objects) > 1:
        named.append(("small object", min(objects)[1]))
    if objects:
        named.append(("large object", max(objects)[1]))
    return named


def pieces(ids: np.ndarray) -> list[tuple[float, Place]]:
    """The area and the innermost place of each connected piece of a class; 0 is the background."""
    found = []
    for label in np.unique(ids[ids > 0]):
        parts, number = ndimage.label(ids == label)
        for part in range(1, number + 1):
            mask = parts == part
            if mask.sum() >= _LEAST_OBJECT:
                found.append((float(mask.sum()), _innermost(mask)))
    return found


def _innermost(mask: np.ndarray) -> Place:
    """The centre (y, x) of the pixel that is farthest from the mask's and the image's border."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), mask.shape)
    return float(row) + 0.5, float(column) + 0.5
