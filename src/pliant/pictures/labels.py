"""Where the labels of boxes go, so that they stay in the picture and cover each other as little as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A label on another one hides both; one on its own box hides a part of the object; the order of places counts least.
_ON_LABELS, _ON_OBJECTS, _ORDER = 10.0, 1.5, 0.02


class Labels:
    """The labels of a picture, placed one after the other.

    Args:
        boxes: all boxes, (x0, y0, x1, y1) in pixels [K, 4].
        size: width and height of the picture.
    """

    def __init__(self, boxes: np.ndarray, size: tuple[int, int]) -> None:
        self.boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
        self.size = size
        self.placed = np.zeros((0, 4))

    def best(self, box: Sequence[float], width: int, height: int) -> tuple[tuple[int, int], float]:
        """The best place for the label of a box.

        Args:
            box: (x0, y0, x1, y1).
            width, height: of the label.

        Returns:
            The upper left corner, and how much of the label lies on labels that are there already, in 0..1.
        """
        places = self._candidates(box, width, height)
        on_labels = _common(places, self.placed).sum(axis=1) / (width * height)
        objects = np.maximum((self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1]), 1)
        on_objects = np.minimum((_common(places, self.boxes) / objects).sum(axis=1), 2)
        cost = _ON_LABELS * on_labels + _ON_OBJECTS * on_objects + _ORDER * np.arange(len(places))
        chosen = int(cost.argmin())
        x, y = places[chosen, :2]
        return (int(x), int(y)), float(on_labels[chosen])

    def add(self, corner: tuple[int, int], width: int, height: int) -> None:
        """Take a place for a label."""
        x, y = corner
        self.placed = np.vstack((self.placed, [[x, y, x + width, y + height]]))

    def _candidates(self, box: Sequence[float], width: int, height: int) -> np.ndarray:
        """Places beside the corners of a box, outside and inside of it, all in the picture; the usual ones first."""
        x0, y0, x1, y1 = box
        corners = [
            *((x, y) for y in (y0 - height, y1) for x in (x0, x1 - width)),
            *((x, y) for y in (y0, y1 - height) for x in (x0, x1 - width)),
            *((x, y) for x in (x1, x0 - width) for y in (y0, y1 - height)),
        ]
        label = np.array([width, height])
        inside = np.clip(np.round(corners), 0, np.maximum(self.size - label, 0))
        return np.concatenate((inside, inside + label), axis=1)


def _common(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas that rectangles [N, 4] share with others [M, 4], [N, M]."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)
