"""Made splits: the classes and the copies in their parts."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import natural
import numpy as np
import pytest
from PIL import Image

from pliant.data.copies import group_copies
from pliant.recipes import find_recipe, override
from pliant.tasks.data_report import data_lines, describe_data, read_splits
from pliant.tasks.splits import Splits, choose_splits, open_training_data
from pliant.tasks.stratification import Group, stratify
from pliant.tasks.task import task_of

FRACTIONS = {"train": 0.7, "test": 0.15, "val": 0.15}


def parts_of(groups: list[Group]) -> dict[str, list[Group]]:
    parts: dict[str, list[Group]] = {part: [] for part in FRACTIONS}
    for part, group in zip(stratify(groups, FRACTIONS), groups, strict=True):
        parts[part].append(group)
    return parts


def test_parts_without_classes_have_their_fractions() -> None:
    parts = parts_of([Group(1, frozenset())] * 200)
    assert {part: len(groups) for part, groups in parts.items()} == {"train": 140, "test": 30, "val": 30}


def test_every_class_is_in_all_parts_in_proportion() -> None:
    generator = np.random.default_rng(0)
    share = np.array([0.9, 0.5, 0.2, 0.05, 0.02])
    groups = [Group(1, frozenset(np.flatnonzero(generator.random(5) < share).tolist())) for _ in range(400)]
    total = Counter(label for group in groups for label in group.classes)
    for part, members in parts_of(groups).items():
        assert len(members) == pytest.approx(400 * FRACTIONS[part], abs=6)
        counts = Counter(label for group in members for label in group.classes)
        for label in range(5):
            assert counts[label] == pytest.approx(FRACTIONS[part] * total[label], abs=4)


def test_three_images_of_a_class_are_enough() -> None:
    rare = [Group(1, frozenset({number, 9})) for number in range(8) for _ in range(3)]
    parts = parts_of(rare + [Group(1, frozenset({9}))] * 120)
    for members in parts.values():
        assert set().union(*(group.classes for group in members)) == {*range(8), 9}
    assert len(parts["val"]) <= 33
    two = parts_of([Group(1, frozenset({0}))] * 2 + [Group(1, frozenset({1}))] * 50)
    assert [sum(0 in group.classes for group in members) for members in two.values()] == [1, 1, 0]


def test_a_part_does_not_grow_beyond_half_more() -> None:
    parts = parts_of([Group(1, frozenset({number})) for number in range(20) for _ in range(3)])
    assert {part: len(groups) for part, groups in parts.items()} == {"train": 32, "test": 14, "val": 14}
    large = parts_of([Group(30, frozenset({0})), *[Group(1, frozenset({0}))] * 70])
    assert Group(30, frozenset({0})) in large["train"]


def test_copies_are_found(tmp_path: Path) -> None:
    for index in range(4):
        natural.image(tmp_path / f"{index}.png", index)
    shutil.copy(tmp_path / "1.png", tmp_path / "again.png")
    names = ["a_jpg.rf.0123456789abcdef.jpg", "a_jpg.rf.fedcba9876543210.jpg", "b_jpg.rf.0123456789abcdef.jpg"]
    for index, name in enumerate([*names, "a.rf.x.jpg", "a_jpg.jpg"]):
        natural.image(tmp_path / name, 5 + index)
    shutil.copy(tmp_path / names[0], tmp_path / "c.jpg")
    groups = group_copies([*sorted(tmp_path.iterdir()), tmp_path / "missing.png"])
    several = [{image.name for image in group} for group in groups if len(group) > 1]
    assert several == [{"1.png", "again.png"}, {names[0], names[1], "c.jpg"}]
    assert sum(map(len, groups)) == 12


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes and one of a third, each with two more versions."""
    root = tmp_path_factory.mktemp("copied")
    for index in range(24):
        for version in range(3):
            name = f"p{index}_png.rf.{version}123456789abcdef"
            natural.image(root / "images" / f"{name}.png", 24 * version + index)
            natural.txt(root / "labels" / f"{name}.txt", index)
            if index == 23:
                (root / "labels" / f"{name}.txt").write_text("2 0.5 0.5 0.2 0.2\n")
    shutil.copy(root / "images" / f"{name}.png", root / "images" / "same.png")
    (root / "classes.txt").write_text("green\nred\nblue\n")
    return root


def test_copies_are_in_one_part_and_it_is_said(copied: Path) -> None:
    recipe = find_recipe("voc.faster_rcnn")
    source = task_of(recipe).source(recipe, copied)
    splits = choose_splits(recipe, copied, source=source)
    places = {Path(image).name.partition(".rf.")[0]: set() for part in splits.made.values() for image in part.images}
    for name, part in splits.made.items():
        for image in part.images:
            places[Path(image).name.partition(".rf.")[0]].add(name)
    assert all(len(parts) == 1 for parts in places.values())
    assert places["same.png"] == places["p23_png"]
    assert [len(splits.made[name].images) for name in ("train", "val", "test")] == [52, 9, 12]
    opened = open_training_data(recipe, copied, splits, source=source)
    report = describe_data(source, splits, opened.by_split())
    lines = "\n".join(data_lines(report))
    assert "but for classes in few images: blue (in 4, not in test and val)." in lines
    assert "49 images are copies of others" in lines
    assert read_splits(splits.names(), report) == splits
    assert choose_splits(recipe, copied) == splits
    assert choose_splits(override(recipe, ["split_seed=1"]), copied).made != splits.made


def test_splits_of_earlier_runs_are_read() -> None:
    names = {"train": "train", "validation": "val", "test": None}
    assert read_splits(names, {"made": {}}) == Splits("train", "val", None)


def test_masks_are_divided_by_the_classes_in_them(tmp_path: Path) -> None:
    for index in range(20):
        natural.image(tmp_path / "images" / f"{index}.png", index)
        ids = np.zeros((48, 64), dtype=np.uint8)
        ids[:5] = 1 + (index < 3)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "masks" / f"{index}.png")
    for seed in range(5):
        splits = choose_splits(override(find_recipe("voc.deeplab"), [f"split_seed={seed}"]), tmp_path)
        for part in splits.made.values():
            assert sum(int(Path(image).stem) < 3 for image in part.images) == 1
        assert [len(splits.made[name].images) for name in ("train", "val", "test")] == [14, 3, 3]
        assert "Every class is in all parts, in about the same proportion." in splits.notes
