"""Which splits are used, and what samples look like."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from pliant.commands.check import check
from pliant.commands.train import train
from pliant.data import DataError
from pliant.recipes import find_recipe, override
from pliant.tasks.splits import Splits, choose_splits, choose_test_split, open_training_data
from pliant.tasks.task import task_of


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["train", "val", "trainval", "test"], Splits("train", "val", "test")),
        (["train", "val", "test"], Splits("train", "val", "test")),
        (["train", "val"], Splits("train", "val", "val")),
        (["train", "val", "trainval"], Splits("train", "val", "val")),
        (["trainval", "val", "test"], Splits("trainval", None, "test")),
        (["train"], Splits("train", None, None)),
        (["default"], Splits("default", None, None)),
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
    root = miniature.make_voc(tmp_path / "data", {"holdout": 1, "spare": 1})
    with pytest.raises(DataError, match="splits there: holdout, spare"):
        choose_splits(find_recipe("voc.faster_rcnn"), root)
    with pytest.raises(DataError, match="no such folder"):
        choose_splits(find_recipe("voc.faster_rcnn"), tmp_path / "none")


def test_advice_fits_the_command_and_the_data(tmp_path: Path, miniature: ModuleType) -> None:
    recipe = find_recipe("voc.faster_rcnn")
    root = miniature.make_voc(tmp_path / "data", {"holdout": 1, "spare": 1})
    with pytest.raises(DataError, match=r"splits there: holdout, spare\. Name one with --set train_split=NAME"):
        choose_splits(recipe, root)
    with pytest.raises(DataError, match=r"splits there: holdout, spare\. Name one with --split NAME"):
        choose_test_split(recipe, root)
    assert choose_test_split(override(recipe, ["test_split=holdout"]), root) == "holdout"
    for name, part in (
        ("voc.rfcn", "no files\n\nWhat would fit:\nlayout=voc: .*\nlayout=coco: .*\nlayout=yolo: "),
        ("voc.deeplab", "layout=masks: images with masks"),
        ("imagenet.resnet101", "layout=folders: images in a folder for each class"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for choose in (choose_splits, choose_test_split):
            with pytest.raises(DataError, match=part):
                choose(find_recipe(name), tmp_path / "empty")


def test_nothing_to_learn_is_an_error_before_anything_is_written(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 2})
    for path in (root / "SegmentationClass").iterdir():
        Image.new("L", (64, 48), 255).save(path)
    with pytest.raises(DataError, match=r"nothing to train on: background, a: .* 6,144 of 6,144 pixels are 255"):
        train("voc.deeplab", root, assignments=["classes=background,a", "weights=random"], run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not check("voc.deeplab", root, assignments=["classes=background,a", "weights=random"])


def checked(capsys: pytest.CaptureFixture[str], name: str, root: Path, *assignments: str) -> str:
    assert check(name, root, assignments=["weights=random", *assignments])
    shown = capsys.readouterr().out
    assert "Training can start." in shown
    assert "expected layout" not in shown
    return shown


def test_check_names_classes_without_a_pixel(
    tmp_path: Path, miniature: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 2})
    for number, path in enumerate(sorted((root / "SegmentationClass").iterdir())):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask, 255 if number else 1, 0).astype(np.uint8)).save(path)
    shown = checked(capsys, "voc.deeplab", root, "classes=background,square,round")
    assert f"train: round: there is no pixel to learn from; {30 * 28:,} of 6,144 pixels are 255" in shown


def test_check_names_images_without_an_object_and_turned_ones(
    tmp_path: Path, miniature: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 14, "test": 1})
    for number in range(12):
        (root / "Annotations" / f"scene_{number}.xml").write_text("<annotation/>")
    path = root / "JPEGImages" / "scene_12.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.open(path).save(path, exif=exif)
    shown = checked(capsys, "voc.faster_rcnn", root, "classes=red,green,blue", "val_fraction=0")
    assert "train: 12 images have no box to train on: scene_0.jpg, scene_1.jpg" in shown
    assert "scene_9.jpg and 2 more" in shown
    assert "train: blue: there is no box to learn from\n" in shown
    assert "train: 1 image has an EXIF orientation, which is not applied: scene_12.jpg (3)." in shown
    assert "problem" not in shown


def test_train_names_classes_without_a_box(
    tmp_path: Path, miniature: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 2})
    monkeypatch.setattr("pliant.commands.train.fit", lambda *_: 0)
    monkeypatch.setattr("pliant.runs.folder.RunFolder.weights", lambda _: "none")
    changes = ["classes=red,green,blue", "backbone=timm/resnet10t", "weights=random", "short_side=48", "max_side=64"]
    train("voc.faster_rcnn", root, assignments=changes, run=tmp_path / "run")
    assert "train: blue: there is no box to learn from\n" in capsys.readouterr().err


def test_coco_layout(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_coco(tmp_path / "data", {"train2017": 2, "val2017": 1})
    recipe = find_recipe("coco.faster_rcnn")
    splits = choose_splits(recipe, root)
    assert splits == Splits("train2017", "val2017", "val2017")
    data = open_training_data(recipe, root, splits)
    assert data.classes == ("red", "green")
    images, targets = data.collate_train([data.train[0], data.train[1]])
    assert images[0].dtype == torch.float32
    assert targets[1]["labels"].tolist() == [2]


def test_masks_are_judged_at_their_own_size(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_voc(tmp_path / "data", {"train": 1, "val": 1})
    recipe = override(find_recipe("voc.deeplab"), ["short_side=24", "max_side=40"])
    image, mask = task_of(recipe).open(recipe, root, "val")[0]
    assert image.shape == (3, 24, 32)
    assert mask.shape == (48, 64)
    image, mask = task_of(recipe).open(recipe, root, "train", training=True)[0]
    assert image.shape[-2:] == mask.shape == (24, 32)


def test_detection_reads_no_cityscapes(tmp_path: Path) -> None:
    recipe = override(find_recipe("voc.rfcn"), ["layout=cityscapes"])
    with pytest.raises(ValueError, match="layout=voc"):
        task_of(recipe).open(recipe, tmp_path, "train")
