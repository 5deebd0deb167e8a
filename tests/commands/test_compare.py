"""`pliant compare` on runs whose results are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from pliant.cli import app
from pliant.recipes import voc
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.folder import RunFolder
from pliant.runs.weights import write_weights

AP = "AP"


def make_run(
    path: Path, recipe: Recipe, score: float | None, name: str = "voc.rfcn", step: int = 9, **changes: Any
) -> Path:
    """A run of some steps, with a report that has this score."""
    description: dict[str, Any] = {
        "recipe": name,
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": ["cat", "dog"],
        "splits": {"train": "train", "validation": "val", "test": "test"},
        "data": str(path.parent / "data"),
        "strict": False,
    } | changes
    run = RunFolder.create(path, description)
    write_weights(run.best.with_suffix(".safetensors"), nn.Linear(1, 1), {**description, "step": step})
    if score is not None:
        report(path, score, step=step)
    return path


def report(run: Path, score: float, split: str = "test", step: int = 9) -> None:
    content = {
        "weights": "best.safetensors",
        "recipe": "voc.rfcn",
        "step": step,
        "data": "/data",
        "split": split,
        "procedure": {"flip": False},
        "results": {AP: score, "AP50": None, "per_class": {"cat": {AP: score / 2}, "dog": {AP: None}}},
    }
    (run / f"eval-{split}.json").write_text(json.dumps(content))


def run(code: int, *arguments: Any) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    """Three seeds of a plain and of a deformable network."""
    scores = {"plain": (0.50, 0.52, 0.54), "deform": (0.55, 0.58, 0.58)}
    return [
        make_run(
            tmp_path / f"{name}{seed}", recipe.replaced(seed=seed, workers=seed), scores[name][seed], f"voc.{name}"
        )
        for name, recipe in (("plain", voc.rfcn()), ("deform", voc.rfcn_deform()))
        for seed in range(3)
    ]


def test_seeds_are_grouped_and_groups_compared(six: list[Path], tmp_path: Path) -> None:
    output = run(0, *six, "--markdown", "--out", tmp_path / "out.json")
    assert "| voc.plain | 0, 1, 2 | 52.0 ± 2.0 |" in output
    assert "| voc.deform | 0, 1, 2 | 57.0 ± 1.7 |" in output
    assert "| voc.deform | AP | +5.0 | +2.5 to +7.5 | 3 pairs |" in output
    assert "ttest_rel" in output
    assert "test of /data" in output
    content = json.loads((tmp_path / "out.json").read_text())
    assert [group["name"] for group in content["groups"]] == ["voc.plain", "voc.deform"]
    assert content["groups"][0]["metrics"]["AP"]["values"] == {"0": 0.5, "1": 0.52, "2": 0.54}
    difference = content["groups"][1]["differences"]["AP"]
    assert (difference["paired"], difference["number"]) == (True, 3)
    assert difference["difference"] == pytest.approx(0.05)
    assert content["groups"][1]["differences"]["AP50"]["difference"] is None


def test_the_first_run_is_the_baseline_and_metrics_can_be_chosen(six: list[Path]) -> None:
    output = run(0, *reversed(six), "--metric", "cat AP", "--markdown")
    assert "| voc.plain | cat AP | -2.5 |" in output
    assert "AP50" not in output
    assert "no metric mAP; they have AP, AP50" in run(2, *six, "--metric", "mAP")


def test_groups_of_one_recipe_are_named_by_the_fields_that_differ(tmp_path: Path) -> None:
    base = voc.rfcn()
    runs = [
        make_run(tmp_path / f"{rate}-{seed}", base.replaced(lr=rate, seed=seed), 0.1 + rate)
        for rate, seed in ((0.1, 0), (0.1, 1), (0.2, 2), (0.2, 3))
    ]
    output = run(0, *runs, "--markdown")
    assert "| lr=0.1 | 0, 1 |" in output
    assert "| lr=0.2 | AP | +10.0 |" in output
    assert "2 and 2 runs" in output
    assert "Welch" in output
    assert "± 0.0" in output


def test_without_evaluations_the_best_validations_are_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{seed}", voc.rfcn().replaced(seed=seed), None) for seed in (0, 1)]
    for path, best in zip(runs, (0.4, 0.6), strict=True):
        (path / "val.csv").write_text(f"step,AP\n3,0.1\n9,{best}\n12,0.3\n")
    output = run(0, *runs, "--markdown")
    assert "50.0 ± 14.1" in output
    assert "best validation" in output
    (runs[1] / "val.csv").unlink()
    assert "neither an evaluation" in run(2, *runs)


def test_what_cannot_be_compared_is_refused(six: list[Path], tmp_path: Path) -> None:
    recipe = voc.rfcn().replaced(seed=5)
    others: dict[str, dict[str, Any]] = {
        "know different classes: cat, dog, and cat": {"classes": ["cat"]},
        "trained on different data": {"data": str(tmp_path / "other")},
        "trained on different splits: train train, validation val, and train trainval": {
            "splits": {"train": "trainval", "validation": "val", "test": "test"}
        },
    }
    for place, (sentence, changes) in enumerate(others.items()):
        other = make_run(tmp_path / f"other{place}", recipe, 0.5, **changes)
        assert sentence in run(2, six[0], other)
    segmenter = make_run(tmp_path / "masks", voc.deeplab(), 0.5)
    assert "different kinds: detection, and segmentation" in run(2, six[0], segmenter)
    made = make_run(tmp_path / "made", recipe, 0.5)
    (made / "data.json").write_text(json.dumps({"made": {"val": {"of": "train", "images": ["a"]}}}))
    assert "splits were made of other images" in run(2, six[0], made)
    again = make_run(tmp_path / "again", voc.rfcn(), 0.5, "voc.plain")
    assert "the same training with the same seed 0" in run(2, *six, again)
    assert "given twice" in run(2, six[0], six[0])
    assert "is not a run folder" in run(2, six[0], tmp_path)


def test_the_evaluation_must_be_one_of_all_runs_and_of_their_weights(six: list[Path], tmp_path: Path) -> None:
    for path in six:
        report(path, 0.7, "val")
    assert "several evaluations in common" in run(2, *six)
    assert "val of /data" in run(0, *six, "--split", "val")
    (six[2] / "eval-val.json").unlink()
    assert "on val in common (" in run(2, *six, "--split", "val")
    report(six[3], 0.7, "test", step=8)
    said = run(2, *six)
    assert "is of step 8, and the weights are now of step 9" in said
    assert "plain3" not in said
