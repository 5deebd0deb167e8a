"""A task that is one new file: every command takes its recipe, and no other file knows of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from pliant.cli import app

TINY = (
    "backbone=timm/test_resnet",
    "deform_layers=1",
    "train_split=train",
    "val_split=val",
    "test_split=test",
    "crop=32",
    "short_side=36",
    "batch_size=2",
    "max_steps=3",
    "accelerator=cpu",
)
RECIPE = "pliant.recipes.multilabel:pascal"
FILES = {
    "pliant.recipes.multilabel": "multilabel_recipe.py",
    "pliant.tasks.multilabel": "multilabel_task.py",
}


@pytest.fixture(scope="module")
def _installed() -> Iterator[None]:
    """The two files as if they lay in the package."""
    for name, file in FILES.items():
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    yield
    for name in FILES:
        del sys.modules[name]


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("_installed")
def test_train_eval_predict_look(tmp_path: Path, miniature: ModuleType) -> None:
    data = miniature.make_voc(tmp_path / "data", {"train": 5, "val": 2, "test": 3})
    image, place = data / "JPEGImages" / "scene_0.jpg", tmp_path / "run"
    changes = [part for text in TINY for part in ("--set", text)]
    assert "Training can start." in run("check", RECIPE, "--data", data, *changes)
    run("train", RECIPE, "--data", data, "--run", place, *changes)
    assert json.loads((place / "recipe.json").read_text())["kind"] == "multilabel"
    assert (place / "val.csv").read_text().startswith("step,mAP\n")
    assert "This run is finished" in run("train", "--resume", place)
    assert "green" in run("eval", place)
    results = json.loads((place / "eval-test.json").read_text())["results"]
    assert 0 <= results["mAP"] <= 1
    assert set(results["per_class"]) == {"green", "red"}
    run("predict", place, image, "--out", tmp_path / "out")
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert set(record["scores"]) == {"green", "red"}
    run("look", place, image, "--no-cost")
    assert (place / "look" / "look.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_export(tmp_path: Path, miniature: ModuleType) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    data = miniature.make_voc(tmp_path / "data", {"train": 5, "test": 3})
    changes = [part for text in TINY if "val" not in text for part in ("--set", text)]
    run("train", RECIPE, "--data", data, "--run", tmp_path / "run", *changes)
    assert "yes" in run("export", tmp_path / "run", tmp_path / "run.onnx")
    run("eval", tmp_path / "run.onnx", "--data", data, "--split", "test")
