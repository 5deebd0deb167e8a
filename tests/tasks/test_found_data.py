"""Training on data that were found in a folder: what is said, what the run keeps, and moved data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import natural
import pytest
from click.testing import Result
from typer.testing import CliRunner

from pliant.cli import app
from pliant.data import DataError
from pliant.recipes import find_recipe, override
from pliant.runs.trained import load_trained
from pliant.tasks.data_report import read_made
from pliant.tasks.splits import Splits, choose_splits, choose_test_split, open_training_data
from pliant.tasks.task import task_of

TINY = (
    "backbone=timm/resnet10t",
    "weights=random",
    "max_steps=1",
    "batch_size=2",
    "short_side=48",
    "max_side=64",
    "lr=0.001",
    "accelerator=cpu",
)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def settings(*changes: str) -> list[str]:
    return [part for change in (*TINY, *changes) for part in ("--set", change)]


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YOLO's text files without any splits."""
    root = tmp_path_factory.mktemp("unsplit") / "data"
    natural.unsplit(natural.yolo_split_inside, root, ("images", "labels"))
    (root / "data.yaml").write_text("names: [green, red]\n")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, unsplit: Path) -> tuple[Path, str]:
    """A run on a copy of `unsplit`, which was moved afterwards, and what the training printed."""
    base = tmp_path_factory.mktemp("trained")
    shutil.copytree(unsplit, base / "before")
    changes = settings("anchor_scales=1,2", "val_fraction=0.25", "test_fraction=0.25")
    result = run("train", "voc.faster_rcnn", "--data", base / "before", "--run", base / "run", *changes)
    assert result.exit_code == 0, result.output
    (base / "before").rename(base / "after")
    return base / "run", result.output


def test_a_split_is_made_said_and_stored(trained: tuple[Path, str]) -> None:
    folder, shown = trained
    assert "YOLO: .txt in labels/; images in images/; classes from data.yaml" in shown
    assert "The data are not split. Images were chosen by chance: val 2, test 2, train 4" in shown
    assert (folder / "checkpoints" / "best.safetensors").is_file()
    report = json.loads((folder / "data.json").read_text())
    made = read_made(report)
    images = [image for split in made.values() for image in split.images]
    assert sorted(images) == [f"images/{natural.name_of(i)}.png" for i in range(8)]
    assert report["splits"]["val"] | {"images": 2, "for": ["validation"], "made_of": "all"} == report["splits"]["val"]
    assert sum(report["splits"]["train"]["per_class"].values()) == 4


def test_moved_data_keep_their_split(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    data = shutil.copytree(folder.parent / "after", tmp_path / "data")
    made = read_made(json.loads((folder / "data.json").read_text()))
    natural.image(data / "images" / "more.png", 11)  # would change a split that is made again
    natural.txt(data / "labels" / "more.txt", 11)
    network = load_trained(folder)
    for split in ("train", "val", "test"):
        opened = network.open(data, split)
        assert [path.relative_to(data).as_posix() for path in opened.paths] == list(made[split].images)
    result = run("eval", folder, "--data", data)
    assert result.exit_code == 0, result.output
    report = json.loads(next(folder.glob("eval-test*.json")).read_text())
    assert report["images"] == 2
    (data / made["test"].images[0]).unlink()
    (problem,) = [each for each in network.open(data, "test").problems if each.kind == "missing image"]
    assert problem.path == data / made["test"].images[0]


def test_a_run_is_resumed_on_its_own_split(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    result = run("train", "--resume", folder, "--data", folder.parent / "after")
    assert result.exit_code == 0, result.output
    assert "val 2, test 2, train 4" in result.output
    assert "This run is finished" in result.output


def test_weights_without_their_run_are_evaluated_on_the_same_images(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    made = read_made(json.loads((folder / "data.json").read_text()))
    weights = shutil.copy(folder / "checkpoints" / "best.safetensors", tmp_path / "mine.safetensors")
    network, data = load_trained(Path(weights)), folder.parent / "after"
    assert network.data_and_split(data, None) == (data, "test")
    opened = network.open(data, "test")
    assert [path.relative_to(data).as_posix() for path in opened.paths] == list(made["test"].images)


def test_other_data_are_evaluated_on_their_own_split(trained: tuple[Path, str], tmp_path: Path) -> None:
    natural.roboflow_coco(tmp_path / "other")
    network = load_trained(trained[0])
    root, split = network.data_and_split(tmp_path / "other", None)
    assert split == "test"
    assert len(network.open(root, split)) == 2


def test_parts_are_held_out(unsplit: Path, tmp_path: Path, miniature: Any) -> None:
    recipe = find_recipe("voc.faster_rcnn")
    splits = choose_splits(recipe, unsplit)
    assert (splits.train, splits.validation, splits.test) == ("train", "val", "test")
    assert [len(splits.made[name].images) for name in ("train", "val", "test")] == [4, 2, 2]  # both classes are in all
    assert choose_splits(recipe, unsplit) == splits
    assert choose_test_split(recipe, unsplit) == "test"
    assert choose_splits(override(recipe, ["split_seed=1"]), unsplit).made != splits.made
    assert choose_splits(override(recipe, ["val_fraction=0", "test_fraction=0"]), unsplit) == Splits("all", None, None)
    with_test = miniature.make_voc(tmp_path / "voc", {"train": 8, "test": 2})
    splits = choose_splits(recipe, with_test)
    assert (splits.train, splits.validation, splits.test) == ("train", "val", "test")
    assert {name: len(made.images) for name, made in splits.made.items()} == {"train": 6, "val": 2}
    data = open_training_data(recipe, with_test, splits)
    assert (len(data.train), len(data.validation or ())) == (6, 2)
    assert not set(data.train.paths) & set(data.validation.paths if data.validation else ())
    explicit = choose_splits(override(recipe, ["train_split=train"]), with_test, {"train_split"})
    assert explicit == Splits("train", None, "test")


@pytest.mark.parametrize("form", natural.DETECTION)
def test_every_form_opens_for_a_recipe(form: str, tmp_path: Path) -> None:
    natural.DETECTION[form](tmp_path)
    recipe = find_recipe("coco.faster_rcnn_deform")
    assert choose_splits(recipe, tmp_path) == Splits("train", "val", "test")
    data = open_training_data(recipe, tmp_path, choose_splits(recipe, tmp_path))
    assert (len(data.train), data.classes) == (4, natural.CLASSES)


@pytest.mark.parametrize("form", natural.OUTLINED)
def test_outlines_are_for_detectors_and_segmenters(form: str, tmp_path: Path) -> None:
    natural.OUTLINED[form](tmp_path)
    result = run("check", tmp_path)
    assert result.exit_code == 0, result.output
    assert "masks drawn from outlines" in result.output
    assert "Recipes for detection" in result.output
    assert "Recipes for segmentation" in result.output
    recipe = find_recipe("voc.deeplab_deform")
    data = open_training_data(recipe, tmp_path, choose_splits(recipe, tmp_path))
    assert (len(data.train), data.classes) == (4, ("background", *natural.CLASSES))


def test_check_says_what_a_folder_is(unsplit: Path, tmp_path: Path) -> None:
    result = run("check", unsplit)
    assert result.exit_code == 0, result.output
    assert "YOLO: .txt in labels/" in result.output
    assert "faster_rcnn_deform" in result.output
    assert "deeplab" not in result.output
    natural.masks_camvid(tmp_path / "street")
    result = run("check", tmp_path / "street")
    assert result.exit_code == 0, result.output
    assert "images with masks" in result.output
    assert "deeplab" in result.output
    assert "faster_rcnn" not in result.output


@pytest.mark.parametrize(
    ("form", "recipe", "column", "number"),
    [("yolo_beside", "voc.faster_rcnn", "boxes", "4"), ("masks_camvid", "voc.deeplab", "pixels", "12,288")],
)
def test_the_table_names_what_it_counts(form: str, recipe: str, column: str, number: str, tmp_path: Path) -> None:
    {**natural.DETECTION, **natural.SEGMENTATION}[form](tmp_path)
    lines = run("check", recipe, "--data", tmp_path).output.splitlines()
    assert any(column in line.split() and "split" in line for line in lines)
    assert any({"train", number} <= set(line.split()) and "train on" in line for line in lines)
    assert not any("objects" in line for line in lines)


def test_check_says_what_was_seen_where_nothing_fits(tmp_path: Path) -> None:
    natural.image(tmp_path / "pictures" / "a.png", 0)
    (tmp_path / "notes.doc").write_text("none")
    result = run("check", tmp_path)
    assert result.exit_code == 2
    for part in ("pictures/: 1 .png", "./: 1 .doc", "layout=yolo: YOLO", "layout=masks: images with masks"):
        assert part in result.output
    with pytest.raises(DataError, match="no layout of data is recognised here"):
        task_of(recipe := find_recipe("voc.rfcn")).source(recipe, tmp_path)


def test_of_two_kinds_of_annotations_that_of_most_images_is_used(tmp_path: Path) -> None:
    natural.voc_side_by_side(tmp_path)
    natural.txt(tmp_path / "Train" / f"{natural.name_of(0)}.txt", 0)
    recipe = find_recipe("voc.faster_rcnn")
    source = task_of(recipe).source(recipe, tmp_path)
    assert source.name == "voc"
    assert "(--set layout=yolo)" in source.notes[-1]
    recipe = override(recipe, ["layout=yolo"])
    assert task_of(recipe).source(recipe, tmp_path).name == "yolo"


def test_masks_by_the_users_map(tmp_path: Path) -> None:
    natural.masks_split_outside(tmp_path, "colours")
    changes = ["mask_values=#000000:background,#008000:plant,#c80000:plant", "ignored_ids="]
    recipe = override(find_recipe("voc.deeplab"), changes)
    dataset = task_of(recipe).open(recipe, tmp_path, "train")
    assert dataset.classes == ("background", "plant")
    assert not len(dataset.problems)
    assert dataset.class_counts()[1] == 4 * 30 * 28
    natural.masks_split_outside(tmp_path)
    recipe = override(find_recipe("voc.deeplab"), ["ignored_ids=2"])
    dataset = task_of(recipe).open(recipe, tmp_path, "train")
    assert dataset.classes == ("background", "class_1")
    assert dataset.class_counts()[1] == 2 * 30 * 28
    recipe = override(find_recipe("voc.deeplab"), ["mask_values=0:background,*:plant"])
    dataset = task_of(recipe).open(recipe, tmp_path, "train")
    assert (dataset.classes, dataset.class_counts()[1]) == (("background", "plant"), 4 * 30 * 28)


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    natural.image(tmp_path / "training" / "image_2" / "000000.png", 0)
    (tmp_path / "training" / "label_2").mkdir()
    (tmp_path / "training" / "label_2" / "000000.txt").write_text("Car 0.00 0 -1.58 5.0 6.0 40.0 44.0 1.65\n")
    result = run("check", tmp_path)
    assert result.exit_code != 0
    assert "no layout of data is recognised" in result.output
    assert "training/label_2/: 1 .txt" in result.output
