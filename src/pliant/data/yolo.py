"""The annotations of YOLO: a text file for each image, with a line for each object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pliant.data.box_checks import Corners, clip, degenerate
from pliant.data.detection_set import Boxes
from pliant.data.files import read_lines
from pliant.data.problems import ProblemLog

_SHOWN = 120  # characters of a line in a report


class YOLOFormat:
    """Boxes from lines of `class x y width height`, in fractions of the image's size, as Ultralytics writes them.

    A line of a class and three or more points, as for segmentation and rotated boxes, gives the box around the points.
    Keypoints after a box are not used.

    Args:
        names: name of each class id.
        keypoints: numbers after each box that belong to keypoints.
    """

    def __init__(self, names: Sequence[str], keypoints: int = 0) -> None:
        self.names = tuple(names)
        self.keypoints = keypoints

    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.names

    def claimed_size(self, path: Path) -> None:
        """None: the files say no sizes. They are read once, so that unreadable ones are errors."""
        read_lines(path)

    def boxes(self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog) -> Boxes:
        """See `BoxFormat`."""
        boxes = Boxes()
        seen: set[tuple[int, Corners]] = set()
        for number, text in enumerate(read_lines(path), start=1):
            if not text:
                continue
            where = f"line {number}: {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}"
            try:
                line = read_line(text, self.keypoints)
            except ValueError as error:
                problems.report(path, "unreadable annotation", f"{where}: {error}")
                continue
            name = self.names[line.label] if line.label < len(self.names) else f"class {line.label}"
            kind = degenerate(line.corners) or ("not normalised box" if _in_pixels(line.corners) else None)
            if name not in labels:
                problems.report(path, "unknown class", f"{where}: {name} is none of the {len(labels)} classes")
            elif kind is not None:
                problems.report(path, kind, where)
            elif (line.label, line.corners) in seen:
                problems.report(path, "duplicate box", f"{where}: the same box comes before")
            else:
                seen.add((line.label, line.corners))
                _add(boxes, line.corners, labels[name], path, where, size, problems)
        return boxes


class Line(NamedTuple):
    """A line of a file: the class, and corners in fractions of the image's size."""

    label: int
    corners: Corners


def read_line(text: str, keypoints: int = 0) -> Line:
    """Read a line.

    Raises:
        ValueError: if it is not one of YOLO's.
    """
    parts = text.split()
    if len(parts) < 5:
        raise ValueError(f"expected a class and four numbers or three points, got {len(parts)} numbers")
    label = float(parts[0])
    if not (label.is_integer() and 0 <= label < 10**6):
        raise ValueError(f"expected the number of a class, got {parts[0]!r:.40}")
    numbers = [float(part) for part in parts[1:]]
    if len(numbers) == 4 or (keypoints and len(numbers) == 4 + keypoints):
        x, y, width, height = numbers[:4]
        return Line(int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"expected a class and four numbers or three points, got {len(parts)} numbers")
    if not all(map(math.isfinite, numbers)):
        return Line(int(label), (math.nan,) * 4)
    xs, ys = numbers[::2], numbers[1::2]
    return Line(int(label), (min(xs), min(ys), max(xs), max(ys)))


def _in_pixels(corners: Corners) -> bool:
    """Whether corners are beyond any box that overlaps the image, and so are no fractions."""
    return any(abs(value) > 2 for value in corners)


def _add(
    boxes: Boxes, corners: Corners, label: int, path: Path, where: str, size: tuple[int, int], problems: ProblemLog
) -> None:
    height, width = size
    x0, y0, x1, y1 = corners
    box, kind = clip((x0 * width, y0 * height, x1 * width, y1 * height), height, width)
    if kind is not None:
        detail = f"{where} in an image of {width}x{height}"
        problems.report(path, kind, detail, "skipped" if box is None else "clipped")
    if box is not None:
        boxes.add(box, label)
