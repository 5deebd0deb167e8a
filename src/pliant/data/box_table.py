"""Boxes in a table: a CSV file with a row for each box, as spreadsheets and Kaggle's competitions have them."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pliant.data.box_checks import Corners, clipped, degenerate
from pliant.data.detection_set import Boxes
from pliant.data.files import read_text
from pliant.data.problems import ProblemLog

OBJECT = "object"
"""The class of all boxes of a table that has no column for it."""

# Names of columns, without what is no letter or digit, the more telling first.
_IMAGE = ("filename", "imagefilename", "imagename", "imagepath", "filepath", "imageid", "image", "file", "path", "img")
_LABEL = ("classname", "class", "labelname", "label", "categoryname", "category", "species", "objectname")
_CORNERS = ("xmin ymin xmax ymax", "x1 y1 x2 y2", "x0 y0 x1 y1", "left top right bottom")
_SIZES = ("bboxx bboxy bboxwidth bboxheight", "x y w h", "x y width height", "left top width height")
_LIST = ("bbox", "box", "boundingbox")


@dataclass(frozen=True, slots=True)
class Row:
    """A row with a box.

    Attributes:
        number: its line in the file.
        label: name of the class.
        corners: x0, y0, x1, y1 in pixels, or in fractions of the image's size; NaN where a cell is no number.
    """

    number: int
    label: str
    corners: Corners


@dataclass(frozen=True)
class BoxTable:
    """The content of a table.

    Attributes:
        rows: the rows with a box of each image, by its name as written; none for an image without objects.
        fractions: whether the corners are in fractions of the image's size.
    """

    rows: Mapping[str, Sequence[Row]]
    fractions: bool


def read_table(path: Path) -> BoxTable | None:
    """Read a table; None if its first line does not name the columns of images and boxes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no text.
    """
    lines = read_text(path).splitlines()
    if not lines:
        return None
    delimiter = max(",;\t", key=lines[0].count)
    head = [re.sub(r"[^a-z0-9]", "", name.casefold()) for name in next(csv.reader(lines[:1], delimiter=delimiter))]
    image, label = (next((head.index(name) for name in names if name in head), None) for names in (_IMAGE, _LABEL))
    places = _places(head)
    if image is None or places is None:
        return None
    columns, as_corners = places
    found: dict[str, list[Row]] = defaultdict(list)
    for number, cells in enumerate(csv.reader(lines[1:], delimiter=delimiter), start=2):
        texts = [cell.strip() for cell in cells] + [""] * (len(head) - len(cells))
        if not texts[image]:
            continue
        rows = found[texts[image]]
        written = [texts[column] for column in columns]
        if len(columns) == 1:
            written = re.split(r"[\s,;]+", written[0].strip("[]() ")) if written[0] else []
        if any(written):
            name = OBJECT if label is None else texts[label]
            rows.append(Row(number, name, _corners(written, as_corners)))
    corners = [row.corners for rows in found.values() for row in rows if not any(map(math.isnan, row.corners))]
    return BoxTable(dict(found), bool(corners) and all(0 <= value <= 1.01 for each in corners for value in each))


def _places(head: Sequence[str]) -> tuple[list[int], bool] | None:
    """The columns of a box, and whether they are its corners and not a corner and the size."""
    for choices, as_corners in ((_CORNERS, True), (_SIZES, False)):
        for names in map(str.split, choices):
            if all(name in head for name in names):
                return [head.index(name) for name in names], as_corners
    one = next((head.index(name) for name in _LIST if name in head), None)
    return None if one is None else ([one], False)


def _corners(written: Sequence[str], as_corners: bool) -> Corners:
    try:
        x0, y0, x1, y1 = map(float, written)
    except ValueError:
        return (math.nan,) * 4
    return (x0, y0, x1, y1) if as_corners else (x0, y0, x0 + x1, y0 + y1)


class TableFormat:
    """Boxes from tables. The annotation of an image is its name inside the table's path: `train.csv/1.jpg`.

    Args:
        tables: content of each table, by its path.
    """

    def __init__(self, tables: Mapping[Path, BoxTable]) -> None:
        self._rows = {
            table / name: (rows, content.fractions)
            for table, content in tables.items()
            for name, rows in content.rows.items()
        }

    def classes(self) -> tuple[str, ...]:
        """The names in all rows, sorted."""
        return tuple(sorted({row.label for rows, _ in self._rows.values() for row in rows if row.label}))

    def claimed_size(self, path: Path) -> None:
        """None: sizes in tables are often those of other versions of the images."""

    def boxes(self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog) -> Boxes:
        """See `BoxFormat`."""
        boxes, seen = Boxes(), set()
        rows, fractions = self._rows[path]
        height, width = size
        for row in rows:
            where = f"line {row.number}: {row.label or 'without a class'}, {', '.join(f'{v:g}' for v in row.corners)}"
            if row.label not in labels:
                problems.report(path, "unknown class", f"{where}: it is none of the {len(labels)} classes")
                continue
            kind = degenerate(row.corners)
            if kind is None and (row.label, row.corners) in seen:
                kind = "duplicate box"
            if kind is not None:
                problems.report(path, kind, where)
                continue
            seen.add((row.label, row.corners))
            x0, y0, x1, y1 = row.corners
            scaled = (x0 * width, y0 * height, x1 * width, y1 * height) if fractions else row.corners
            box = clipped(scaled, size, path, where, problems)
            if box is not None:
                boxes.add(box, labels[row.label])
        return boxes
