"""The recipes for small data, and the values that they leave to the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from miniature import make_voc

from pliant.commands.train import resume, train
from pliant.models.anchors import Anchors
from pliant.recipes import find_recipe, recipe_names
from pliant.runs.trained import load_trained
from pliant.tasks.splits import choose_splits, open_training_data
from pliant.tasks.task import build_model, task_of

TINY = (
    "backbone=timm/resnet10t",
    "weights=none",
    "short_side=48",
    "max_side=64",
    "batch_size=1",
    "max_steps=1",
    "accelerator=cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("data"), {"train": 4, "val": 2, "test": 2})


def test_anchors_come_from_the_boxes_and_stay_with_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("small.faster_rcnn_deform", data, assignments=TINY, run=tmp_path / "run")
    trained = load_trained(run.path)
    # Images of 48 x 64 pixels keep their size, and all boxes have 30 x 28 pixels.
    assert trained.recipe.anchor_scales == (1.28, 1.52, 1.81, 2.15, 2.56)
    assert "anchor_scales=1.28, 1.52, 1.81, 2.15, 2.56, from the training images" in capsys.readouterr().err
    generator: Any = next(layer for layer in trained.model().modules() if isinstance(layer, Anchors))
    assert generator.sizes == ((1.28, 1.52, 1.81, 2.15, 2.56),)
    assert run.best.is_file() or run.best.with_suffix(".safetensors").is_file()
    resume(run.path)  # finished, so this only builds


def test_anchors_are_those_of_the_scaled_images(data: Path) -> None:
    recipe = find_recipe("small.faster_rcnn").replaced(short_side=96, max_side=400)
    training = open_training_data(recipe, data, choose_splits(recipe, data)).train
    assert task_of(recipe).completed(recipe, training).anchor_scales == (2.56, 3.05, 3.62, 4.31, 5.12)
    bounded = recipe.replaced(max_side=128, short_side=100)
    assert task_of(bounded).completed(bounded, training).anchor_scales == (2.56, 3.05, 3.62, 4.31, 5.12)


def test_given_anchors_are_kept(data: Path) -> None:
    recipe = find_recipe("small.faster_rcnn").replaced(anchor_scales=(1, 2))
    training = open_training_data(recipe, data, choose_splits(recipe, data)).train
    assert task_of(recipe).completed(recipe, training) is recipe


def test_a_network_without_the_data_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"anchor_scales=none stands for .* --set anchor_scales=1,2,4"):
        build_model(find_recipe("small.faster_rcnn").replaced(weights=None), ("red",))


def test_small_objects_are_said_with_a_size_at_which_they_are_larger() -> None:
    recipe = find_recipe("small.faster_rcnn").replaced(weights="random")
    doubts = task_of(recipe).doubts(recipe.replaced(anchor_scales=(0.5, 0.75, 1.0, 1.5, 2.0)))
    assert "16 pixels, hardly more than a cell" in doubts["objects"]
    assert "--set short_side=576 --set max_side=960" in doubts["objects"]
    assert "4.0 times as long" in doubts["objects"]
    assert "objects" not in task_of(recipe).doubts(recipe.replaced(anchor_scales=(1, 2, 4)))
    assert "objects" not in task_of(recipe).doubts(recipe)


def test_recipes_for_small_data_differ_in_deformation_alone() -> None:
    assert {name for name in recipe_names() if name.startswith("small.")} == {
        "small.deeplab",
        "small.deeplab_deform",
        "small.faster_rcnn",
        "small.faster_rcnn_deform",
    }
    for name in ("small.deeplab", "small.faster_rcnn"):
        plain, deform = find_recipe(name), find_recipe(f"{name}_deform")
        assert task_of(deform).without_deformation(deform) == plain
        assert deform.deform_layers == 3
        assert plain.weights == "pretrained"
        assert plain.clip is not None
        assert 0 < plain.warmup_steps < plain.max_steps / 10
        assert plain.validate_every <= plain.max_steps / 3
