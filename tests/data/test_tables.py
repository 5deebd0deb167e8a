"""Boxes in CSV tables: defects, other columns, and tables of other things."""

from __future__ import annotations

from pathlib import Path

import natural
import pytest

from pliant.data.box_table import OBJECT, read_table
from pliant.data.discovery import Survey, find_tables

HEAD = "filename,class,xmin,ymin,xmax,ymax"


def test_defects_of_a_table_are_problems(tmp_path: Path) -> None:
    for index in range(3):
        natural.image(tmp_path / "images" / f"{index}.png", index)
    rows = [
        "0.png,red,1,2,11,12",
        "0.png,red,1,2,11,12",  # twice
        "0.png,red,11,2,1,12",  # inverted
        "0.png,red,1,2,eleven,12",
        "0.png,,1,2,11,12",  # without a class
        "gone.png,red,1,2,11,12",
        "1.png,,,,,",  # no objects
    ]
    (tmp_path / "boxes.csv").write_text("\n".join([HEAD, *rows]))
    data = find_tables(Survey.of(tmp_path))
    assert data is not None
    assert data.notes == ["1 image is in no row and left out, such as images/2.png"]
    dataset = data.open("all", classes=("red",))
    assert [path.name for path in dataset.paths] == ["0.png", "1.png"]
    assert dataset[0][1]["boxes"].tolist() == [[1, 2, 11, 12]]
    assert len(dataset[1][1]["boxes"]) == 0
    found = {problem.kind: problem for problem in dataset.problems}
    assert set(found) == {"duplicate box", "inverted box", "non-numeric box", "unknown class", "missing image"}
    assert "boxes.csv/0.png" in str(found["inverted box"].path)
    assert "line 4: red, 11, 2, 1, 12" in found["inverted box"].detail


@pytest.mark.parametrize(
    ("head", "row", "corners"),
    [
        ("Image Name;X;Y;W;H", "a;1;2;10;10", (1, 2, 11, 12)),
        ("label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width", "red,1,2,10,10,a,9", (1, 2, 11, 12)),
        ("img\tx1\ty1\tx2\ty2", "a\t1\t2\t11\t12", (1, 2, 11, 12)),
        ("image_id,width,height,bbox,source", 'a,1024,1024,"[1.0, 2.0, 10.0, 10.0]",usask', (1, 2, 11, 12)),
    ],
)
def test_columns_have_other_names(tmp_path: Path, head: str, row: str, corners: tuple[float, ...]) -> None:
    (tmp_path / "t.csv").write_text(f"{head}\n{row}\n")
    table = read_table(tmp_path / "t.csv")
    assert table is not None
    assert not table.fractions
    ((found,),) = table.rows.values()
    assert list(table.rows) == ["a"]
    assert found.corners == corners
    assert found.label == ("red" if "label" in head else OBJECT)


@pytest.mark.parametrize("text", ["", "name,r,g,b\na,1,2,3\n", "image_id,PredictionString\na,1 2 3 4\n", "a,b\n"])
def test_other_tables_are_none_of_boxes(tmp_path: Path, text: str) -> None:
    natural.image(tmp_path / "a.png", 0)
    (tmp_path / "t.csv").write_text(text)
    assert read_table(tmp_path / "t.csv") is None
    assert find_tables(Survey.of(tmp_path)) is None
