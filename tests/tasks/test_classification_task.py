"""Classification from end to end on miniature folders, and its weights as those of the other kinds' backbones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from pliant.backbones import AlignedInceptionResNetBackbone, backbone
from pliant.cli import app
from pliant.data import DataError
from pliant.engine import ClassificationMetrics
from pliant.nn import DeformConv2d
from pliant.recipes import find_recipe, override
from pliant.runs.weights import read_weights
from pliant.tasks.splits import Splits, choose_splits, open_training_data
from pliant.tasks.task import build_model

TINY = ("crop=32", "short_side=36", "batch_size=2", "max_steps=2", "lr=1.0", "accelerator=cpu")
Train = Callable[..., tuple[Path, Result]]


def pliant_cli(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    root = miniature.make_folders(tmp_path_factory.mktemp("data"), {"train": 5, "val": 4})
    (root / "train" / "red" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    return root


@pytest.fixture
def train(tmp_path: Path, data: Path) -> Iterator[Train]:
    run = tmp_path / "run"

    def start(name: str, *changes: str) -> tuple[Path, Result]:
        assignments = [part for text in (*TINY, *changes) for part in ("--set", text)]
        result = pliant_cli("train", name, "--data", data, "--run", run, *assignments)
        assert result.exit_code == 0, result.output
        return run, result

    yield start
    shutil.rmtree(run, ignore_errors=True)  # weights and checkpoints of half a gigabyte


def test_schedule_of_imagenet() -> None:
    recipe = find_recipe("imagenet.aligned_inception_resnet")
    assert (recipe.scaled_lr, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (0.1, 256, 0.9, 1e-4)
    assert recipe.max_steps == 450_410
    assert recipe.decay_at == (1 / 3, 2 / 3)
    assert not recipe.frozen


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("crop=300", "crop must be at most short_side, got 300 and 256"),
        ("dilation=2", "a classifier has no dilation=2"),
        ("layout=voc", "layout must be 'folders', got 'voc'"),
    ],
)
def test_wrong_change_is_an_error(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(find_recipe("imagenet.resnet101"), [assignment])


def test_detector_on_aligned_inception_resnet() -> None:
    with torch.device("meta"):
        model = build_model(find_recipe("coco.rfcn_deform_aligned_inception_resnet"), ("cat", "dog"))
    assert isinstance(model.backbone, AlignedInceptionResNetBackbone)
    assert sum(isinstance(module, DeformConv2d) for module in model.modules()) == 9


def test_splits(data: Path, tmp_path: Path, miniature: ModuleType) -> None:
    recipe = find_recipe("imagenet.resnet101")
    assert choose_splits(recipe, data) == Splits("train", "val", "val")
    assert choose_splits(override(recipe, ["val_split=val"]), data) == Splits("train", "val", "val")
    three = miniature.make_folders(tmp_path, {"train": 2, "val": 2, "test": 2})
    assert choose_splits(recipe, three) == Splits("train", "val", "test")
    with pytest.raises(DataError, match="no layout of data is recognised here"):
        choose_splits(recipe, data / "train" / "red")


def test_folders_of_classes_without_splits(tmp_path: Path, miniature: ModuleType) -> None:
    miniature.make_folders(tmp_path / "flowers", {"archive": 8})
    recipe = find_recipe("imagenet.resnet101")
    opened = open_training_data(recipe, tmp_path, splits := choose_splits(recipe, tmp_path))
    assert {name: len(made.images) for name, made in splits.made.items()} == {"train": 4, "val": 2, "test": 2}
    assert opened.classes == ("green", "red")
    for path, label in zip(opened.train.paths, opened.train.labels, strict=True):
        assert path.parent.name == opened.classes[label]


def test_batches(data: Path) -> None:
    recipe = override(find_recipe("imagenet.resnet101"), [*TINY, "val_split=val"])
    opened = open_training_data(recipe, data, choose_splits(recipe, data))
    for dataset, collate in (
        (opened.train, opened.collate_train),
        (opened.validation, opened.collate_evaluation),
    ):
        images, labels = collate([dataset[0], dataset[3]])
        assert images.shape == (2, 3, 32, 32)
        assert labels.tolist() == [0, 1]
    assert opened.classes == ("green", "red")


def test_accuracy_by_hand() -> None:
    metrics = ClassificationMetrics(tuple("abcdefg"))
    logits = torch.arange(7.0).flip(0).repeat(4, 1)  # the order of scores is a, b, ..., g
    metrics.update(logits[:3], torch.tensor([0, 4, 5]))
    metrics.update(logits[3:], torch.tensor([0]))
    results = metrics.compute()
    assert (results["top1"], results["top5"]) == (0.5, 0.75)
    assert results["per_class"]["a"]["top1"] == 1.0
    assert results["per_class"]["e"]["top1"] == 0.0
    assert results["per_class"]["b"]["top1"] != results["per_class"]["b"]["top1"]  # NaN
    with pytest.raises(ValueError, match="at least two classes"):
        ClassificationMetrics(("a",))


def test_train_eval_and_predict(train: Train, data: Path, tmp_path: Path) -> None:
    # timm starts a residual branch at zero: offsets get a gradient in the second step.
    changes = ("backbone=timm/resnet10t", "val_split=val", "deform_layers=1", "max_steps=3")
    run, result = train("imagenet.resnet101", *changes)
    assert "1 x unreadable image" in result.output
    assert "broken.jpg" in (run / "problems.txt").read_text()
    header, first, _, third = (line.split(",") for line in (run / "train.csv").read_text().splitlines())
    assert header == ["step", "lr", "loss", "loss_class", "mean_offset"]
    assert float(first[1]) == pytest.approx(2 / 256)
    assert float(third[-1]) > float(first[-1]) == 0.0
    assert (run / "val.csv").read_text().startswith("step,top1,top5\n")
    assert ">top5<" in (run / "curves.html").read_text(encoding="utf-8")

    result = pliant_cli("eval", run)
    assert result.exit_code == 0, result.output
    report = json.loads((run / "eval-val.json").read_text())
    assert (report["images"], report["results"]["top5"]) == (4, 1.0)
    assert set(report["results"]["per_class"]) == {"green", "red"}
    assert report["results"]["top1"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "top5" in result.output

    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    Image.open(data / "val" / "red" / "6.jpg").save(pictures / "6.WEBP")
    Image.open(data / "val" / "red" / "8.jpg").save(pictures / "more" / "8.tiff")
    (pictures / "notes.txt").touch()
    out = pictures / "out"
    for _ in range(2):  # the second time, the pictures of the first lie below the folder
        result = pliant_cli("predict", run, pictures, "--out", out)
        assert result.exit_code == 0, result.output
        assert "1 file is ignored" in result.output
    found = json.loads((out / "predictions.json").read_text())
    assert [Path(item["file_name"]).name for item in found] == ["6.WEBP", "8.tiff"]
    for item in found:
        assert {best["category"] for best in item["top5"]} == {"green", "red"}
        assert sum(best["score"] for best in item["top5"]) == pytest.approx(1.0, abs=1e-5)
        assert item["top5"][0]["score"] >= item["top5"][1]["score"]
    with Image.open(out / "6.png") as picture:
        assert picture.width == 6 * 64  # enlarged, so that the names can be read
        assert picture.height > 6 * 48


def trained_equals_loaded(run: Path, name: str, deform_layers: int) -> None:
    weights = run / "checkpoints" / "last.safetensors"
    body = backbone(name, weights=weights, deform_layers=deform_layers)
    stored, description = read_weights(weights)
    assert description["kind"] == "classification"
    own = body.state_dict()
    assert sum(".offset_conv." in key for key in own) == 2 * deform_layers
    assert {f"backbone.{key}" for key in own} | {"backbone.fc.weight", "backbone.fc.bias"} == {
        key for key in stored if not key.endswith("num_batches_tracked")
    }
    assert all(torch.equal(value, stored[f"backbone.{key}"]) for key, value in own.items())
    # The norms were trained, so what is loaded is not how they start.
    assert not torch.equal(own["bn1.running_mean"], torch.zeros(64))
    assert not torch.equal(own["bn1.weight"], torch.ones(64))


def test_weights_of_resnet50_serve_its_backbone(train: Train) -> None:
    run, _ = train("imagenet.resnet101", "backbone=resnet50")
    trained_equals_loaded(run, "resnet50", 0)


def test_weights_of_aligned_inception_resnet_serve_its_backbone(train: Train) -> None:
    run, _ = train("imagenet.aligned_inception_resnet_deform")
    weights = run / "checkpoints" / "last.safetensors"
    trained_equals_loaded(run, "aligned_inception_resnet", 9)
    with pytest.raises(ValueError, match=r"does not fit.*unknown layer4\.\S*offset_conv"):
        backbone("aligned_inception_resnet", weights=weights)
