"""Which splits are used, and what samples look like."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from pliant.data import DataError
from pliant.recipes import find_recipe, override
from pliant.recipes.datasets import Splits, choose_splits, open_split, open_training_data


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["train", "val", "trainval", "test"], Splits("trainval", None, "test")),
        (["train", "val", "test"], Splits("train", "val", "test")),
        (["train", "val"], Splits("train", None, "val")),
        (["train", "val", "trainval"], Splits("train", None, "val")),
        (["train"], Splits("train", None, None)),
    ],
)
def test_usual_splits_are_found(tmp_path: Path, miniature: ModuleType, there: list[str], chosen: Splits) -> None:
    root = miniature.make_voc(tmp_path / "data", dict.fromkeys(there, 1))
    assert choose_splits(find_recipe("voc.faster_rcnn"), root) == chosen


def test_official_splits_come_first(tmp_path: Path, miniature: ModuleType) -> None:
    kit = tmp_path / "VOCdevkit"
    miniature.make_voc(kit / "VOC2007", {"trainval": 1, "test": 1})
    miniature.make_voc(kit / "VOC2012", {"trainval": 1, "train": 1, "val": 1})
    assert choose_splits(find_recipe("voc.faster_rcnn"), kit) == Splits(
        "2007_trainval+2012_trainval", None, "2007_test"
    )
    assert choose_splits(find_recipe("voc.deeplab"), kit) == Splits("2012_train", None, "2012_val")


def test_split_that_was_asked_for_is_not_replaced(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 1, "test": 1})
    recipe = override(find_recipe("voc.faster_rcnn"), ["train_split=tarin"])
    splits = choose_splits(recipe, root, {"train_split"})
    assert splits.train == "tarin"
    with pytest.raises(DataError, match="no split 'tarin'"):
        open_training_data(recipe, root, splits)


def test_nothing_to_train_on(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_voc(tmp_path / "data", {"holdout": 1})
    with pytest.raises(DataError, match="splits there: holdout"):
        choose_splits(find_recipe("voc.faster_rcnn"), root)
    with pytest.raises(DataError, match="no such folder"):
        choose_splits(find_recipe("voc.faster_rcnn"), tmp_path / "none")


def test_coco_layout(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_coco(tmp_path / "data", {"train2017": 2, "val2017": 1})
    recipe = find_recipe("coco.faster_rcnn")
    splits = choose_splits(recipe, root)
    assert splits == Splits("train2017", None, "val2017")
    data = open_training_data(recipe, root, splits)
    assert data.classes == ("red", "green")
    images, targets = data.collate_train([data.train[0], data.train[1]])
    assert images[0].dtype == torch.float32
    assert targets[1]["labels"].tolist() == [2]


def test_masks_are_judged_at_their_own_size(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 1, "val": 1})
    recipe = override(find_recipe("voc.deeplab"), ["short_side=24", "max_side=40"])
    image, mask = open_split(recipe, root, "val")[0]
    assert image.shape == (3, 24, 32)
    assert mask.shape == (48, 64)
    image, mask = open_split(recipe, root, "train", training=True)[0]
    assert image.shape[-2:] == mask.shape == (24, 32)


def test_segmentation_reads_no_coco(tmp_path: Path) -> None:
    recipe = override(find_recipe("voc.deeplab"), ["layout=coco"])
    with pytest.raises(ValueError, match="layout=voc"):
        open_split(recipe, tmp_path, "train")
