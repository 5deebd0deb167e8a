"""The annotations of LabelMe: a JSON file for each image, with a list of shapes."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pliant.constants import IGNORE
from pliant.data.box_checks import Corners, clipped, degenerate
from pliant.data.detection_set import Boxes
from pliant.data.drawn_set import checked
from pliant.data.files import ReadOnce, read_text
from pliant.data.outlines import Outline, encode_mask, is_background, polygon, rectangle
from pliant.data.problems import ProblemLog

_IGNORED = "__ignore__"  # the label of regions that LabelMe's own converters ignore
_CIRCLE = 64  # corners of the polygon that stands for a circle
_WITHOUT_AREA = ("line", "linestrip", "point", "points")


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of a file.

    Attributes:
        label: name of its class.
        kind: such as `"polygon"`.
        numbers: its points x, y, x, y, ... as written.
        mask: the text of a mask's PNG image in base64.
        group: shapes with the same group and label are one object.
        difficult: whether it is marked as difficult, as X-AnyLabeling does.
    """

    label: str
    kind: str
    numbers: tuple[Any, ...]
    mask: str
    group: Any
    difficult: bool


@dataclass(frozen=True, slots=True)
class LabelMeFile:
    """The contents of a file. `size` is (height, width), None if missing; shapes that cannot be read are texts."""

    filename: str
    size: tuple[float, float] | None
    shapes: tuple[Shape | str, ...]


class LabelMeFormat:
    """Boxes and outlines from LabelMe's JSON files. Each file is read once.

    Args:
        files: all files, whose names of classes are used.
    """

    def __init__(self, files: Collection[Path]) -> None:
        self._files = files
        self.file = ReadOnce(read_labelme)

    def filename(self, path: Path) -> str:
        """The name of its image that a file holds; errors as those of `read_labelme`."""
        return self.file(path).filename

    def classes(self) -> tuple[str, ...]:
        """The labels in all files, sorted, without those of the background and of ignored regions."""
        found = set()
        for path in self._files:
            try:
                found |= {shape.label for shape in self.file(path).shapes if isinstance(shape, Shape)}
            except (OSError, ValueError):
                continue  # it is reported when it is read as a sample
        return tuple(sorted(name for name in found if name != _IGNORED and not is_background(name)))

    def claimed_size(self, path: Path) -> tuple[float, float] | None:
        """See `SizeFormat`."""
        return self.file(path).size

    def boxes(self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog) -> Boxes:
        """See `BoxFormat`. The box of a polygon or mask is the one around it; that of a group is around all."""
        groups: dict[Any, tuple[int, Corners, bool]] = {}
        for number, (where, shape, outline) in enumerate(self._outlines(path, size, labels, problems)):
            if outline.label == IGNORE or is_background(shape.label):
                continue
            kind = degenerate(outline.corners)
            if kind is not None:
                problems.report(path, kind, where)
                continue
            key = number if shape.group is None else (shape.label, str(shape.group))
            _, before, hard = groups.get(key, (0, outline.corners, False))
            groups[key] = outline.label, _around(before, outline.corners), hard or shape.difficult
        boxes = Boxes()
        for label, corners, difficult in groups.values():
            box = clipped(corners, size, path, f"{corners}", problems)
            if box is not None:
                boxes.add(box, label, difficult=difficult)
        return boxes

    def outlined(self, path: Path) -> bool:
        """See `OutlineFormat`."""
        try:
            shapes = [shape for shape in self.file(path).shapes if isinstance(shape, Shape)]
        except ValueError:
            return False
        return any(shape.kind not in ("rectangle", *_WITHOUT_AREA) for shape in shapes)

    def outlines(
        self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog
    ) -> list[Outline]:
        """See `OutlineFormat`. Rectangles are outlines too, as in LabelMe's own converter."""
        found = (
            checked(outline, path, where, size, problems)
            for where, _, outline in self._outlines(path, size, labels, problems)
        )
        return [outline for outline in found if outline is not None]

    def _outlines(
        self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog
    ) -> list[tuple[str, Shape, Outline]]:
        """The shapes that have an area, each with its place as text; what is wrong with others is reported."""
        found = []
        seen: set[Shape] = set()
        for number, shape in enumerate(self.file(path).shapes):
            if isinstance(shape, str):
                problems.report(path, "unreadable annotation", f"shapes[{number}]: {shape}")
                continue
            where = f"shapes[{number}], a {shape.kind} {shape.label!r:.80}"
            if shape.kind in _WITHOUT_AREA:
                problems.report(path, "shape without area", where)
                continue
            if shape in seen:
                problems.report(path, "duplicate box", f"{where}: the same shape comes before")
                continue
            seen.add(shape)
            label = 0 if is_background(shape.label) else labels.get(shape.label, IGNORE)
            if label == IGNORE and shape.label != _IGNORED:
                detail = f"{where}: none of the {len(labels)} classes"
                problems.report(path, "unknown class", detail)
            try:
                found.append((where, shape, _outline(shape, label, size)))
            except ValueError as error:
                problems.report(path, "unreadable annotation", f"{where}: {error}")
        return found


def read_labelme(path: Path) -> LabelMeFile:
    """Read a file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not one of LabelMe's.
    """
    try:
        content = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(shapes, list):
        raise ValueError("a file of LabelMe has a list of shapes")
    size = [content.get(key) for key in ("imageHeight", "imageWidth")]
    known = [float(value) for value in size if isinstance(value, int | float) and value > 0]
    name = content.get("imagePath")
    return LabelMeFile(
        name if isinstance(name, str) else "",
        (known[0], known[1]) if len(known) == 2 else None,
        tuple(map(_shape, shapes)),
    )


def _shape(item: Any) -> Shape | str:
    """A shape as it is written, or what is wrong with it."""
    points = item.get("points") if isinstance(item, dict) else None
    label = item.get("label") if isinstance(item, dict) else None
    if not isinstance(label, str) or not label.strip() or not isinstance(points, list):
        return f"expected a label and points, got {item!r:.120}"
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        return f"expected points of two numbers, got {points!r:.120}"
    numbers = tuple(value for point in points for value in point)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        return f"expected points of two numbers, got {points!r:.120}"
    mask, group = item.get("mask"), item.get("group_id")
    return Shape(
        label.strip(),
        str(item.get("shape_type") or "polygon"),
        tuple(map(float, numbers)),
        mask if isinstance(mask, str) else "",
        group if isinstance(group, int | str) else None,
        item.get("difficult") is True,
    )


def _outline(shape: Shape, label: int, size: tuple[int, int]) -> Outline:
    """The outline of a shape with an area."""
    if shape.kind not in _READERS:
        raise ValueError(f"a shape is one of {', '.join([*_READERS, *_WITHOUT_AREA])}")
    return _READERS[shape.kind](shape, label, size)


def _polygon(shape: Shape, label: int, size: tuple[int, int]) -> Outline:
    return Outline(label, (polygon(shape.numbers),))


def _rectangle(shape: Shape, label: int, size: tuple[int, int]) -> Outline:
    if len(shape.numbers) == 8:
        return _polygon(shape, label, size)
    (x0, y0), (x1, y1) = _two_points(shape)
    return Outline(label, (rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))),))


def _circle(shape: Shape, label: int, size: tuple[int, int]) -> Outline:
    (x, y), edge = _two_points(shape)
    radius, angles = math.dist((x, y), edge), np.linspace(0, 2 * np.pi, _CIRCLE, endpoint=False)
    return Outline(label, (np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1),))


def _mask(shape: Shape, label: int, size: tuple[int, int]) -> Outline:
    """A mask is an image of the rectangle between two points, both of which are inside."""
    (x0, y0), _ = _two_points(shape)
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask, validate=True)), formats=("PNG",)) as image:
            if image.width * image.height > 4 * size[0] * size[1]:
                raise ValueError(f"its mask has {image.width}x{image.height} pixels")
            inside = np.array(image) > 0
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"its mask cannot be read: {error}") from error
    if inside.ndim != 2:
        raise ValueError("its mask has colours")
    left, top = round(x0), round(y0)
    whole = np.zeros(size, dtype=bool)
    part = inside[max(0, -top) : max(0, size[0] - top), max(0, -left) : max(0, size[1] - left)]
    whole[max(0, top) :, max(0, left) :][: part.shape[0], : part.shape[1]] = part
    return Outline(label, runs=encode_mask(whole))


def _two_points(shape: Shape) -> tuple[tuple[float, float], tuple[float, float]]:
    if len(shape.numbers) != 4:
        raise ValueError(f"it has two points, got {len(shape.numbers) // 2}")
    x0, y0, x1, y1 = shape.numbers
    return (x0, y0), (x1, y1)


_READERS: dict[str, Callable[[Shape, int, tuple[int, int]], Outline]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _mask,
    "rotation": _polygon,
    "oriented_rectangle": _polygon,
}


def _around(one: Corners, other: Corners) -> Corners:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])
