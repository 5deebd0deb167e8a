"""The annotations of YOLO: a text file for each image, with a line for each object."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pliant.constants import IGNORE
from pliant.data.box_checks import Corners, clipped, degenerate
from pliant.data.detection_set import Boxes
from pliant.data.drawn_set import checked
from pliant.data.files import read_lines
from pliant.data.outlines import Outline, polygon, rectangle
from pliant.data.problems import ProblemLog

_SHOWN = 120  # characters of a line in a report


class YOLOFormat:
    """Boxes from lines of `class x y width height`, in fractions of the image's size, as Ultralytics writes them.

    A line of a class and three or more points, as for segmentation and rotated boxes, gives the box around the points,
    or their polygon as an outline. Keypoints after a box are not used.

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
        for line, where in self._lines(path, problems):
            if line.name not in labels:
                problems.report(path, "unknown class", f"{where}: {line.name} is none of the {len(labels)} classes")
            else:
                _add(boxes, line.corners, labels[line.name], path, where, size, problems)
        return boxes

    def outlined(self, path: Path) -> bool:
        """See `OutlineFormat`."""
        try:
            lines = [read_line(text, self.keypoints) for text in read_lines(path) if text]
        except (OSError, ValueError):
            return False
        polygons = [polygon(line.points) for line in lines if line.points and all(map(math.isfinite, line.points))]
        return any(not Outline(0, (points,)).is_rectangle() for points in polygons)

    def outlines(
        self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog
    ) -> list[Outline]:
        """See `OutlineFormat`."""
        found: list[Outline] = []
        scale = np.array(size[::-1])
        for line, where in self._lines(path, problems):
            label = labels.get(line.name, IGNORE)
            if label == IGNORE:
                detail = f"{where}: {line.name} is none of the {len(labels)} classes, so its pixels are ignored"
                problems.report(path, "unknown class", detail)
            elif not line.points:
                label = IGNORE
                problems.report(path, "box without an outline", f"{where}: its pixels are ignored")
            points = polygon(line.points) if line.points else rectangle(line.corners)
            outline = checked(Outline(label, (points * scale,)), path, where, size, problems)
            found += [] if outline is None else [outline]
        return found

    def _lines(self, path: Path, problems: ProblemLog) -> Iterator[tuple[NamedLine, str]]:
        """The usable lines of a file, each with its place as text; what is wrong with others is reported."""
        seen: set[Line] = set()
        for number, text in enumerate(read_lines(path), start=1):
            if not text:
                continue
            where = f"line {number}: {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}"
            try:
                line = read_line(text, self.keypoints)
            except ValueError as error:
                problems.report(path, "unreadable annotation", f"{where}: {error}")
                continue
            kind = degenerate(line.corners) or ("not normalised box" if _in_pixels(line.corners) else None)
            if kind is not None:
                problems.report(path, kind, where)
            elif line in seen:
                problems.report(path, "duplicate box", f"{where}: the same box comes before")
            else:
                seen.add(line)
                name = self.names[line.label] if line.label < len(self.names) else f"class {line.label}"
                yield NamedLine(name, line.corners, line.points), where


class NamedLine(NamedTuple):
    """A line of a file with the name of its class."""

    name: str
    corners: Corners
    points: tuple[float, ...]


class Line(NamedTuple):
    """A line of a file: the class, and in fractions of the image's size the corners, and the points of a polygon."""

    label: int
    corners: Corners
    points: tuple[float, ...] = ()


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
    return Line(int(label), (min(xs), min(ys), max(xs), max(ys)), tuple(numbers))


def _in_pixels(corners: Corners) -> bool:
    """Whether corners are beyond any box that overlaps the image, and so are no fractions."""
    return any(abs(value) > 2 for value in corners)


def _add(
    boxes: Boxes, corners: Corners, label: int, path: Path, where: str, size: tuple[int, int], problems: ProblemLog
) -> None:
    height, width = size
    x0, y0, x1, y1 = corners
    box = clipped((x0 * width, y0 * height, x1 * width, y1 * height), size, path, where, problems)
    if box is not None:
        boxes.add(box, label)
