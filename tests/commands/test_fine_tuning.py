"""A training starts from another one's weights, and a run is extended."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from pliant.cli import app
from pliant.recipes import find_recipe, override
from pliant.runs.extension import CHANGEABLE, schedule_said
from pliant.runs.folder import RunFolder
from pliant.runs.foreign import coco_classes
from pliant.runs.training import describe, weights_description
from pliant.runs.weights import read_weights, write_weights
from pliant.schedule import Schedule
from pliant.tasks.splits import Splits
from pliant.tasks.task import build_model

TINY = (
    "backbone=timm/test_resnet",
    "frozen=false",
    "anchor_scales=1,2",
    "max_steps=2",
    "batch_size=2",
    "checkpoint_every=1",
    "validate_every=2",
    "short_side=48",
    "max_side=64",
    "accelerator=cpu",
    "lr=0.01",
    "decay_at=",
)


def pliant_cli(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def train(recipe: str, data: Path, run: Path, *changes: str) -> Result:
    fields = {field.name for field in dataclasses.fields(find_recipe(recipe))}
    tiny = [text for text in TINY if text.partition("=")[0] in fields]
    settings = [part for text in (*tiny, *changes) for part in ("--set", text)]
    result = pliant_cli("train", recipe, "--data", data, "--run", run, *settings)
    assert result.exit_code == 0, result.output
    return result


def table(result: Result) -> dict[str, str]:
    """The lines of a title and a text that `train` prints."""
    rows = [line.strip().split("  ", 1) for line in result.output.splitlines()]
    return {row[0]: row[1].strip() for row in rows if len(row) == 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    splits = {"train": 4, "val": 2}
    root: Path = miniature.make_voc(tmp_path_factory.mktemp("data") / "voc", splits)
    miniature.make_voc(root.with_name("other"), splits, classes=("red", "cat"))
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data.parent / "run"
    train("voc.faster_rcnn_deform", data, folder, "weights=random")
    return folder


def test_from_one_run_to_the_data_of_another(run: Path, data: Path, tmp_path: Path) -> None:
    result = train("voc.faster_rcnn_deform", data.with_name("other"), tmp_path / "tuned", f"weights={run}", "lr=1e-9")
    said = table(result)
    assert said["weights"] == f"{RunFolder(run).weights()} (voc.faster_rcnn_deform, step 2)"
    assert said["loaded"].startswith("the backbone timm/test_resnet (")
    assert said["left out"] == (
        "roi_heads.box_predictor.bbox_pred, roi_heads.box_predictor.cls_score (for other classes)"
    )
    assert said["missing"] == "roi_heads.box_predictor (starts anew)"
    (tuned, description), (theirs, _) = (
        read_weights(RunFolder(folder).weights()) for folder in (tmp_path / "tuned", run)
    )
    assert description["classes"] == ["cat", "red"]
    alike = {name for name in theirs if torch.allclose(tuned[name], theirs[name], atol=1e-5)}
    assert {name.split(".")[1] for name in set(theirs) - alike if "running" not in name} <= {"box_predictor", "body"}
    assert "backbone.body.conv1.0.weight" in alike or "backbone.body.conv1.weight" in alike
    start = json.loads((tmp_path / "tuned" / "recipe.json").read_text())["start"]
    assert start["missing"] == {"roi_heads.box_predictor": "starts anew"}


def test_from_an_imported_detector_of_coco_to_other_classes(data: Path, tmp_path: Path) -> None:
    """The file is as `import-weights` writes it, on a small backbone."""
    changes = [change for change in TINY if "anchor" not in change]
    recipe = override(find_recipe("coco.fpn_faster_rcnn"), [*changes, "weights=none"])
    names = coco_classes()
    model = build_model(recipe, names, pretrained=False)
    description = describe("coco.fpn_faster_rcnn", (), recipe, names, Splits("", None, None), tmp_path)
    write_weights(tmp_path / "coco.safetensors", model, {**weights_description(description), "step": 0})
    result = train(
        "coco.fpn_faster_rcnn_deform",
        data,
        tmp_path / "tuned",
        f"weights={tmp_path / 'coco.safetensors'}",
        "layout=voc",
        "train_split=train",
        "test_split=val",
        "max_steps=1",
        "batch_size=1",
    )
    said = table(result)
    assert said["weights"].endswith("coco.safetensors (coco.fpn_faster_rcnn, imported)")
    assert {"backbone.fpn", "rpn.head", "roi_heads.box_head"} <= set(said["loaded"].split(", "))
    assert "(for other classes)" in said["left out"]
    assert "offset branches (start at zero)" in said["missing"]


def test_weights_that_do_not_fit_leave_nothing_behind(run: Path, data: Path, tmp_path: Path) -> None:
    settings = [part for text in (f"weights={run}", "backbone=timm/resnet10t") for part in ("--set", text)]
    result = pliant_cli("train", "voc.deeplab", "--data", data, "--run", tmp_path / "run", *settings)
    assert result.exit_code == 2
    assert "tensors of the backbone timm/resnet10t fit" in result.output
    assert "it was trained with backbone=timm/test_resnet, which fits" in result.output
    assert not (tmp_path / "run").exists()


def test_more_steps(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train("voc.deeplab_deform", data, folder, "weights=random")
    result = pliant_cli("train", "--resume", folder, "--set", "max_steps=4", "--set", "workers=0")
    assert result.exit_code == 0, result.output
    assert "Continued after step 2" in result.output
    assert table(result)["schedule"] == "learning rate 0.0025 in steps 3 to 4"
    whole = tmp_path / "whole"
    train("voc.deeplab_deform", data, whole, "weights=random", "max_steps=4")
    assert (folder / "train.csv").read_bytes() == (whole / "train.csv").read_bytes()
    (one, description), (other, _) = (
        read_weights(path / "checkpoints" / "last.safetensors") for path in (folder, whole)
    )
    assert all(torch.equal(one[name], value) for name, value in other.items())
    history = json.loads((folder / "recipe.json").read_text())["history"]
    assert [(entry["step"], entry["changes"]) for entry in history] == [(2, {"max_steps": [2, 4]})]
    assert description["fields"]["max_steps"] == 4
    assert description["history"] == history
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for change, message in (
        ("max_steps=3", "max_steps must be at least 4, the steps that are done, got 3"),
        ("batch_size=4", f"a run keeps its batch_size, .* --set weights={folder}"),
        ("max_stepz=5", "did you mean 'max_steps'"),
    ):
        refused = pliant_cli("train", "--resume", folder, "--set", change)
        assert refused.exit_code == 2
        assert re.search(message, refused.output), refused.output
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_may_change_are_fields_of_every_recipe() -> None:
    for name in ("voc.rfcn", "voc.deeplab", "imagenet.resnet101"):
        assert all(hasattr(find_recipe(name), field) for field in CHANGEABLE)


@pytest.mark.parametrize(
    ("before", "after", "step", "said", "jumps"),
    [
        (
            {},
            {"max_steps": 200},
            100,
            "0.1 in steps 101 to 133, 0.01 in steps 134 to 200. It was 0.01 in step 100",
            True,
        ),
        ({}, {"max_steps": 200}, 50, "learning rate 0.1 in steps 51 to 133, 0.01 in steps 134 to 200", False),
        ({}, {"max_steps": 200, "decay_at": (0.335,)}, 100, "learning rate 0.01 in steps 101 to 200", False),
        ({"decay_at": ()}, {"max_steps": 200, "decay_at": ()}, 100, "learning rate 0.1 in steps 101 to 200", False),
        ({"warmup_steps": 80}, {"max_steps": 150, "warmup_steps": 80}, 60, "0.01 in steps 61 to 80, 0.1 in", False),
        ({}, {"lr": 0.5}, 90, "learning rate 0.05 in steps 91 to 100", False),
        ({}, {}, 100, "no steps are left", False),
    ],
)
def test_what_a_change_means_for_the_schedule(
    before: dict[str, Any], after: dict[str, Any], step: int, said: str, jumps: bool
) -> None:
    schedules = [Schedule(**{"max_steps": 100, "lr": 0.1, **given}) for given in (before, after)]
    text, jump = schedule_said(schedules[0], schedules[1], step)
    assert said in text
    assert jump is jumps
    if jump:
        assert "--set decay_at=0.335 lets it fall at the steps where it fell before" in text
