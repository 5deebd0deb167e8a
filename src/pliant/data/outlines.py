"""Outlines of objects: polygons and run lengths, the boxes around them, and the masks that are drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from pliant.data.box_checks import TOLERANCE, Corners

BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Outline:
    """The outline of an object, in pixels of its image.

    Attributes:
        label: what is drawn inside: the index of a class, or `IGNORE`.
        polygons: the parts of the object, float64 `[N, 2]` each, (x, y).
        runs: the mask of the object in COCO's compressed run lengths, in place of polygons.
        crowd: whether it is a region of several objects.
    """

    label: int
    polygons: tuple[np.ndarray, ...] = ()
    runs: dict[str, Any] | None = None
    crowd: bool = False

    @property
    def area(self) -> float:
        """The area in square pixels."""
        if self.runs is not None:
            return float(coco_mask.area(self.runs))
        return sum(map(polygon_area, self.polygons))

    @property
    def corners(self) -> Corners:
        """The box around the outline."""
        if self.runs is not None:
            x, y, width, height = np.asarray(coco_mask.toBbox(self.runs), dtype=np.float64).tolist()
            return x, y, x + width, y + height
        points = np.concatenate(self.polygons)
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return x0, y0, x1, y1

    def is_rectangle(self) -> bool:
        """Whether it is a box: four corners whose sides are along the axes."""
        if self.runs is not None or len(self.polygons) != 1:
            return False
        points = self.polygons[0]
        return len(np.unique(points, axis=0)) == 4 and all(len(np.unique(axis)) == 2 for axis in points.T)


def polygon(numbers: Sequence[Any], scale: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The points `[N, 2]` of numbers x, y, x, y, ..., multiplied by `scale` (of x, of y).

    Raises:
        ValueError: if they are no numbers, not finite, or fewer than three points.
    """
    try:
        flat = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the points of a polygon are numbers") from None
    if flat.ndim != 1 or flat.size % 2 or flat.size < 6:
        raise ValueError(f"a polygon has three or more points, got {flat.size} numbers")
    if not np.isfinite(flat).all():
        raise ValueError("the points of a polygon are finite numbers")
    return flat.reshape(-1, 2) * scale


def rectangle(corners: Corners) -> np.ndarray:
    """The corners of a box as a polygon `[4, 2]`."""
    x0, y0, x1, y1 = corners
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def polygon_area(points: np.ndarray) -> float:
    """The area inside a polygon `[N, 2]`."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def read_runs(written: Any, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run lengths, as a list of counts or a compressed string, in compressed form.

    Args:
        written: a mapping with `size` and `counts`.
        size: height and width of the image.

    Raises:
        ValueError: if they are not of this form, or of another size.
    """
    counts = written.get("counts") if isinstance(written, dict) else None
    if not isinstance(written, dict) or written.get("size") != list(size):
        got = written.get("size") if isinstance(written, dict) else written
        raise ValueError(f"run lengths have the size of the image, {list(size)}, got {got!r:.80}")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"run lengths have counts, a list of whole numbers or a string, got {counts!r:.80}")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"the counts of run lengths have the sum {size[0] * size[1]} (all pixels), got {sum(counts)}")
    return dict(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _decompressed(text: str) -> list[int]:
    """The counts in COCO's string: five bits a character, the lowest first, and from the third on differences.

    faster-coco-eval decodes strings too, but takes wrong ones for masks of anything.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"no counts of run lengths: {text!r:.80}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError(f"the counts of run lengths end within a number: {text!r:.80}")
    return counts


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool `[H, W]`, as compressed run lengths."""
    return dict(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def clip_outline(outline: Outline, size: tuple[int, int]) -> tuple[Outline | None, str | None]:
    """Check an outline against its image of `size` (height, width).

    Returns:
        The outline, with points at most one image away from the image, or None if nothing of it is inside; and the kind
        of problem, None if it was inside to within one pixel.
    """
    if outline.runs is not None:
        return (outline, None) if outline.area else (None, "outline without area")
    height, width = size
    x0, y0, x1, y1 = outline.corners
    if math.isclose(outline.area, 0.0, abs_tol=1e-9):
        return None, "outline without area"
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return None, "outline outside"
    if max(-x0, -y0, x1 - width, y1 - height) <= TOLERANCE:
        return outline, None
    low, high = np.array([-width, -height]), 2 * np.array([width, height])
    near = tuple(points.clip(low, high) for points in outline.polygons)
    return Outline(outline.label, near, None, outline.crowd), "outline partly outside"


def draw(outlines: Iterable[Outline], size: tuple[int, int]) -> np.ndarray:
    """The mask of some outlines, uint8 `[H, W]`; 0 where there is none.

    Crowds are drawn first, then larger objects before smaller ones, and of equal ones the first: a small object on a
    large one stays visible. Pixels are inside by COCO's rule.

    Args:
        outlines: the outlines, as `clip_outline` returns them.
        size: height and width.
    """
    mask = np.zeros(size, dtype=np.uint8)
    for outline in sorted(outlines, key=lambda each: (not each.crowd, -each.area)):
        if outline.runs is not None:
            mask[coco_mask.decode(outline.runs).reshape(size) > 0] = outline.label
        for points in outline.polygons:
            _fill(mask, points, outline.label)
    return mask


def _fill(mask: np.ndarray, points: np.ndarray, label: int) -> None:
    """Draw a polygon. Only the rectangle around it is decoded, which takes most of the time."""
    limits = np.array(mask.shape[::-1])
    low = np.floor(points.min(axis=0)).astype(int).clip(0, limits)
    high = (np.ceil(points.max(axis=0)).astype(int) + 1).clip(0, limits)
    width, height = (high - low).tolist()
    if width <= 0 or height <= 0:
        return
    runs = coco_mask.frPyObjects([(points - low).ravel().tolist()], height, width)
    inside = coco_mask.decode(runs).reshape(height, width) > 0
    mask[low[1] : high[1], low[0] : high[0]][inside] = label


def is_background(name: str) -> bool:
    """Whether a name means the background, as in `_background_`."""
    return name.strip(" _").lower() == BACKGROUND


def with_background(names: Sequence[str]) -> tuple[str, ...]:
    """The classes of masks that are drawn from outlines of these classes: the background comes first."""
    own = next((name for name in names if is_background(name)), BACKGROUND)
    return (own, *(name for name in names if not is_background(name)))
