"""Masks and boxes from outlines: polygons, run lengths and LabelMe's shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import natural
import numpy as np
import pytest
from miniature import HEIGHT, WIDTH
from pycocotools import mask as pycoco

from pliant.constants import IGNORE
from pliant.data import DataError, discover
from pliant.data.discovery import Survey, find_coco_outlines, find_labelme, find_labelme_outlines, find_yolo_outlines
from pliant.data.mask_values import MaskValues
from pliant.data.outlines import Outline, clip_outline, draw, polygon, read_runs, rectangle

SIZE = (HEIGHT, WIDTH)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    generator = np.random.default_rng(0)
    for number in range(40):
        points = generator.uniform(-10, 75, (3 + number % 5, 2))
        expected = pycoco.decode(pycoco.frPyObjects([points.ravel().tolist()], *SIZE))[..., 0]
        assert np.array_equal(draw([Outline(1, (points,))], SIZE), expected)


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    generator = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.3, 0.9, 1.0):
        mask = np.asfortranarray(generator.random((23, 31)) < share, dtype=np.uint8)
        written = {"size": [23, 31], "counts": pycoco.encode(mask)["counts"].decode()}
        outline = Outline(1, runs=read_runs(written, (23, 31)))
        assert np.array_equal(draw([outline], (23, 31)), mask)
        assert outline.area == mask.sum()
        assert outline.corners[2:] != (0, 0) or not mask.any()


@pytest.mark.parametrize(
    "written",
    [
        {"size": [48, 64], "counts": [10, 5]},
        {"size": [48, 64], "counts": [10, -5, 48 * 64 - 5]},
        {"size": [48, 64], "counts": [10.0, 48 * 64 - 10]},
        {"size": [48, 64], "counts": "zzz"},
        {"size": [48, 64], "counts": "n"},
        {"size": [48, 64], "counts": "é"},
        {"size": [48, 64], "counts": None},
        {"size": [64, 48], "counts": [48 * 64]},
        {"counts": [48 * 64]},
        3,
    ],
)
def test_wrong_run_lengths_are_refused(written: Any) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        read_runs(written, (48, 64))


@pytest.mark.parametrize(
    "numbers", [[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, "x"], [0, 0, 9, 9, 9, float("nan")]]
)
def test_wrong_polygons_are_refused(numbers: Any) -> None:
    with pytest.raises(ValueError, match="polygon"):
        polygon(numbers)


def test_small_objects_lie_over_large_ones_and_crowds_below() -> None:
    small, large = rectangle((10, 10, 20, 20)), rectangle((5, 5, 40, 40))
    crowd = Outline(3, (rectangle((12, 12, 15, 15)),), crowd=True)
    expected = np.zeros(SIZE)
    expected[5:40, 5:40] = 2
    expected[10:20, 10:20] = 1
    mask = draw([Outline(1, (small,)), Outline(2, (large,)), crowd], SIZE)
    assert np.array_equal(mask, expected)
    assert draw([Outline(1, (small,)), Outline(2, (small,))], SIZE)[12, 12] == 2


@pytest.mark.parametrize(
    ("corners", "kind", "pixels"),
    [
        ((0, 0, 10, 10), None, 100),
        ((-1, 0, 9, 10), None, 90),
        ((-5, 0, 10, 10), "outline partly outside", 100),
        ((-1e9, -1e9, 1e9, 1e9), "outline partly outside", HEIGHT * WIDTH),
        ((70, 0, 80, 10), "outline outside", 0),
        ((5, 5, 5, 10), "outline without area", 0),
    ],
)
def test_outlines_are_clipped(corners: Any, kind: str | None, pixels: int) -> None:
    outline, found = clip_outline(Outline(1, (rectangle(corners),)), SIZE)
    assert found == kind
    assert (0 if outline is None else draw([outline], SIZE).sum()) == pixels


def write_labelme(root: Path, shapes: list[dict[str, Any]]) -> None:
    natural.image(root / "a.png", 0)
    natural.labelme(root / "a.json", 0)
    content = json.loads((root / "a.json").read_text())
    (root / "a.json").write_text(json.dumps({**content, "shapes": shapes}))


def shape(label: str, *points: tuple[float, float], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, **more}


BOX = ((10, 10), (20, 20))


def test_shapes_of_labelme_give_boxes(tmp_path: Path) -> None:
    write_labelme(
        tmp_path,
        [
            shape("cat", *BOX, kind="rectangle"),
            shape("cat", (30, 24), (30, 34), kind="circle"),
            shape("dog", (0, 0), (5, 0), (0, 5), group_id=1),
            shape("dog", (40, 40), (45, 40), (40, 45), group_id=1, difficult=True),
            shape("dog", (20, 0), (30, 0), (30, 8), (20, 8), kind="rotation"),
            shape("_background_", (0, 0), (64, 0), (0, 48)),
            shape("__ignore__", (0, 0), (64, 0), (0, 48)),
        ],
    )
    data = find_labelme(Survey.of(tmp_path))
    assert data is not None
    dataset = data.open("all", strict=True)
    assert dataset.classes == ("cat", "dog")
    target = dataset[0][1]
    boxes = [(10, 10, 20, 20), (20, 14, 40, 34), (0, 0, 45, 45), (20, 0, 30, 8)]
    np.testing.assert_allclose(target["boxes"].numpy(), boxes, atol=0.05)
    assert target["labels"].tolist() == [1, 1, 2, 2]
    assert target["difficult"].tolist() == [False, False, True, False]


def test_defects_of_labelme_are_problems(tmp_path: Path) -> None:
    write_labelme(
        tmp_path,
        [
            shape("cat", (0, 0), (9, 0), (0, 9)),
            shape("cat", (0, 0), (9, 0), (0, 9)),
            shape("cat", (0, 0), (9, 0)),
            shape("cat", (0, 0), (9, 0), kind="line"),
            shape("cat", *BOX, kind="mask", mask="none"),
            shape("cat", *BOX, kind="star"),
            {"label": "cat", "points": [[1, "x"], [2, 3], [4, 5]]},
            {"points": []},
        ],
    )
    natural.labelme(tmp_path / "b.json", 1)
    natural.image(tmp_path / "c.png", 2)
    (tmp_path / "c.json").write_text('{"shapes": 3}')
    for find in (find_labelme, find_labelme_outlines):
        data = find(Survey.of(tmp_path))
        assert data is not None
        dataset = data.open("all")
        assert len(dataset) == 1
        assert dataset.problems.counts() == {
            "unreadable annotation": 6,
            "duplicate box": 1,
            "shape without area": 1,
            "missing image": 1,
        }


def test_classes_and_ignored_regions_of_masks(tmp_path: Path) -> None:
    write_labelme(
        tmp_path,
        [
            shape("cat", *BOX, kind="rectangle"),
            shape("dog", (30, 0), (40, 0), (40, 10), (30, 10)),
            shape("__ignore__", (0, 0), (5, 0), (5, 5), (0, 5)),
            shape("_background_", (12, 12), (14, 12), (14, 14), (12, 14)),
        ],
    )
    data = discover(tmp_path, "labelme", masks=True)
    dataset = data.open("all", strict=True)
    assert dataset.classes == ("background", "cat", "dog")
    assert dataset.class_counts()[1:] == [96, 100]
    assert (dataset[0][1] == IGNORE).sum() == 25
    dataset = data.open("all", classes=("dog",))
    assert dataset.classes == ("background", "dog")
    assert dataset.problems.counts() == {"unknown class": 1}
    assert (dataset[0][1] == IGNORE).sum() == 25 + 96
    assert data.open("all", classes=("dog", "_background_")).classes == ("_background_", "dog")
    assert data.open("all", values=MaskValues.given((), (2,))).class_counts() == [HEIGHT * WIDTH - 221, 96, 0]
    with pytest.raises(DataError, match="set classes"):
        data.open("all", values=MaskValues.given(("0:background", "1:cat")))


def test_objects_without_an_outline_are_ignored(tmp_path: Path) -> None:
    natural.coco_outlines(tmp_path / "coco")
    path = tmp_path / "coco" / "train.json"
    content = json.loads(path.read_text())
    first, second, third, _ = content["annotations"]
    del first["segmentation"]
    first["bbox"] = [2, 3, 10, 20]
    second["segmentation"] = [[1, 2, 3]]
    third["category_id"] = 7
    path.write_text(json.dumps(content))
    data = find_coco_outlines(Survey.of(tmp_path / "coco"))
    assert data is not None
    dataset = data.open("train")
    assert dataset.problems.counts() == {
        "box without an outline": 1,
        "unreadable annotation": 1,
        "unknown class": 1,
    }
    assert [int((dataset[i][1] == IGNORE).sum()) for i in range(4)] == [200, 0, 30 * 28, 0]
    assert [int((dataset[i][1] == 0).all()) for i in range(4)] == [0, 1, 0, 0]
    natural.yolo_polygons(tmp_path / "yolo")
    natural.txt(next((tmp_path / "yolo" / "labels" / "set 0").iterdir()), 0)
    data = find_yolo_outlines(Survey.of(tmp_path / "yolo"))
    assert data is not None
    assert data.open("train").problems.counts() == {"box without an outline": 1}
