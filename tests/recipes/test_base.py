"""Recipes by name, their fields, and changes from the command line."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pliant.recipes import RECIPES, DetectionRecipe, SegmentationRecipe, find_recipe, override, recipe_names
from pliant.recipes.base import to_fields
from pliant.tasks.task import stored_recipe


def test_every_recipe_is_found_by_its_name() -> None:
    names = recipe_names()
    assert {
        "coco.faster_rcnn",
        "coco.faster_rcnn_deform",
        "voc.deeplab",
        "voc.deeplab_deform",
        "voc.faster_rcnn",
        "voc.faster_rcnn_deform",
    } <= set(names)
    assert {find_recipe(name).kind for name in names} == {"detection", "segmentation", "classification"}


def test_the_table_holds_every_recipe() -> None:
    for module, names in RECIPES.items():
        functions = inspect.getmembers(importlib.import_module(f"pliant.recipes.{module}"), inspect.isfunction)
        own = [name for name, function in functions if function.__module__ == f"pliant.recipes.{module}"]
        assert tuple(own) == names


def test_a_mistyped_name_imports_nothing() -> None:
    program = """if True:
        import sys
        from pliant.recipes import find_recipe
        try:
            find_recipe("voc.faster_rccn")
        except ValueError:
            print([name for name in sys.modules if name in ("torch", "pliant.recipes.voc")])
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_a_recipe_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_recipes.py").write_text(
        "from dataclasses import replace\n"
        "from pliant.recipes import voc\n"
        "def small():\n    return replace(voc.rfcn_deform(), bins=3)\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_recipe("own_recipes:small").bins == 3
    for name, message in (
        ("own_recipes:large", "no attribute 'large'"),
        ("no_such_module:small", "No module named 'no_such_module'"),
        ("own_recipes:number", "must return a recipe, got int"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            find_recipe(name)


@pytest.mark.parametrize("name", ["voc.faster_rccn", "voc", "base.find_recipe", "os.getcwd", "", "train.train"])
def test_unknown_recipe_is_an_error_that_lists_the_right_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"voc\.faster_rcnn_deform"):
        find_recipe(name)


def test_schedules_of_the_paper() -> None:
    detection, segmentation = find_recipe("voc.faster_rcnn"), find_recipe("voc.deeplab")
    for recipe in (detection, segmentation):
        assert (recipe.lr, recipe.batch_size, recipe.max_steps) == (1e-3, 8, 30_000)
        assert (recipe.momentum, recipe.weight_decay, recipe.decay_at) == (0.9, 5e-4, (2 / 3,))
        assert recipe.deform_layers == 0
    assert (detection.short_side, detection.max_side) == (600, 1000)
    assert (segmentation.short_side, segmentation.max_side) == (360, 600)
    assert find_recipe("coco.faster_rcnn").max_steps == 240_000


def test_variant_differs_in_what_it_says_alone() -> None:
    plain, deform = to_fields(find_recipe("voc.faster_rcnn")), to_fields(find_recipe("voc.faster_rcnn_deform"))
    changed = {key: deform[key] for key in plain if plain[key] != deform[key]}
    assert changed == {"deform_layers": 3, "deform_roi": True}


def test_learning_rate_follows_the_true_batch() -> None:
    assert override(find_recipe("voc.deeplab"), ["batch_size=2"]).scaled_lr == pytest.approx(2.5e-4)


def test_values_are_read_by_the_type_of_the_field() -> None:
    recipe = override(
        find_recipe("voc.faster_rcnn"),
        [
            "max_steps=600",
            "lr=3e-4",
            "deform_roi=true",
            "clip=10",
            "classes=red, white",
            "decay_at=0.5,0.75",
            "anchor_scales=4",
            "precision=bf16-mixed",
            "test_split=none",
            "weights=/a=b",
        ],
    )
    assert recipe.max_steps == 600
    assert recipe.lr == 3e-4
    assert recipe.deform_roi is True
    assert recipe.clip == 10.0
    assert recipe.classes == ("red", "white")
    assert recipe.decay_at == (0.5, 0.75)
    assert recipe.anchor_scales == (4,)
    assert recipe.test_split is None
    assert recipe.weights == "/a=b"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("short_sid=400", r"no field 'short_sid'; did you mean 'short_side'\? Fields: .*short_side \(int\)"),
        ("short_side", "expected field=value"),
        ("short_side=4.5", "short_side must be a valid integer, .*, got '4.5'"),
        ("lr=fast", "lr must be a valid number"),
        ("deform_roi=maybe", "deform_roi must be a valid boolean"),
        ("precision=8", "precision must be '32-true', 'bf16-mixed' or '16-mixed', got '8'"),
        ("lr=none", "lr must be a valid number"),
        ("anchor_scales=1,x", "anchor_scales must be a valid number, .*, got 'x'"),
        ("max_steps=0", "max_steps must be greater than or equal to 1"),
        ("workers=-1", "workers must be greater than or equal to 0, got '-1'"),
        ("short_side=2000", "short_side must be at most max_side, got 2000 and 1000"),
    ],
)
def test_wrong_change_is_an_error(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(find_recipe("voc.faster_rcnn"), [assignment])


def test_recipe_comes_back_from_json() -> None:
    for name in recipe_names():
        recipe = find_recipe(name)
        fields = json.loads(json.dumps(to_fields(recipe)))
        assert stored_recipe(recipe.kind, fields) == recipe


def test_foreign_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        stored_recipe("pose", {})
    with pytest.raises(ValueError, match="unknown fields depth"):
        stored_recipe("detection", {"depth": 3})
    with pytest.raises(ValueError, match="max_steps must be a valid integer, got 'many'"):
        stored_recipe("detection", {"max_steps": "many"})
    with pytest.raises(ValueError, match="lr must be a valid number, got True"):
        DetectionRecipe(lr=True)


def test_field_that_only_detection_has() -> None:
    with pytest.raises(ValueError, match="SegmentationRecipe has no field 'deform_roi'"):
        override(SegmentationRecipe(), ["deform_roi=true"])
