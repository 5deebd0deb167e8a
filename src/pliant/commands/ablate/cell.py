"""Training and evaluating one network of an ablation with one seed, and the record of it."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import shlex
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from pliant.backbones.frozen_stages import FrozenStages
from pliant.bench import machine
from pliant.commands.ablate.grid import Cell
from pliant.devices import choose_device
from pliant.engine.fitting import fit
from pliant.recipes.base import Recipe
from pliant.runs.evaluation import evaluate_trained, open_for_evaluation
from pliant.runs.files import write_json
from pliant.runs.folder import RunFolder, versions
from pliant.runs.trained import load_trained
from pliant.runs.training import batch_groups, build_module, describe, fit_settings, weights_description
from pliant.tasks.splits import Splits, TrainingData

_STEPS_OF_AN_OFFSET = 10  # the offsets of a batch vary, so a point of a curve has their mean over these steps


@dataclass(frozen=True)
class Plan:
    """What is trained in every cell.

    Attributes:
        asked: The user's arguments, which show whether a folder holds the same ablation.
        name: Name of the recipe.
        assignments: Changes of the recipe's fields, ``field=value``.
        recipe: The recipe with these changes and the number of steps.
        data: The folder of the data.
        splits: Splits to train and to evaluate on. Validation, if there is any, is on the latter: it draws a curve and
            chooses nothing, since all cells are evaluated after the last step.
        found: What the data holds, for ``data.json`` of each run.
        seeds: Number of seeds.
        maps: Folder of the maps of stages that the recipe freezes.
        device: The device of the networks; None for that of the recipe.
    """

    asked: dict[str, Any]
    name: str
    assignments: tuple[str, ...]
    recipe: Recipe
    data: Path
    splits: Splits
    found: dict[str, Any]
    seeds: int
    maps: Path
    device: torch.device | None = None


def run_cell(plan: Plan, cell: Cell, opened: TrainingData, watch: Callable[[int], None]) -> None:
    """Train and evaluate a cell, from its checkpoint if it has one, and write its record."""
    recipe = dataclasses.replace(plan.recipe, **cell.variant.changes, seed=cell.seed)
    run = RunFolder(cell.run)
    if not run.description_path.is_file():
        run.clear()
        description = describe(plan.name, plan.assignments, recipe, opened.classes, plan.splits, plan.data)
        run = RunFolder.create(cell.run, description, plan.found)
    begun = time.monotonic()
    outcome: dict[str, Any]
    try:
        start = fit_cell(plan, recipe, run, opened, watch)
        seconds = None if start else round(time.monotonic() - begun, 1)
        outcome = {"training_seconds": seconds, **_evaluate(plan, run)}
    except FloatingPointError as error:
        outcome = {"failed": str(error)}
    cell.record.parent.mkdir(exist_ok=True)
    write_json(cell.record, {**_described(plan, cell, recipe), "curve": _curve(run), **outcome})
    for checkpoint in run.checkpoints.glob("*.ckpt"):
        checkpoint.unlink()  # the files of weights are kept


def fit_cell(
    plan: Plan, recipe: Recipe, run: RunFolder, opened: TrainingData, watch: Callable[[int], None] | None
) -> int:
    """Train the network of a cell; return the step from which it was continued."""
    lightning.seed_everything(recipe.seed, verbose=False)
    module = build_module(recipe, opened.classes, pretrained=not run.last.is_file())
    if recipe.freeze_below is not None:
        body = module.model.get_submodule("backbone")
        assert isinstance(body, FrozenStages)  # other backbones have refused the field
        body.keep_frozen_maps(plan.maps)
    description = weights_description(run.description())
    settings = fit_settings(recipe, plan.device)
    return fit(module, opened, run, settings, description, batch_groups(recipe, opened.train), watch)


def _evaluate(plan: Plan, run: RunFolder) -> dict[str, Any]:
    """The results of a network after its last step."""
    trained, split = load_trained(run.last.with_suffix(".safetensors")), str(plan.splits.test)
    dataset = open_for_evaluation(trained, plan.data, split, quiet=True)
    evaluation = evaluate_trained(trained, dataset, split, device=plan.device, show=False)
    kept = ("step", "split", "images", "skipped", "problems")
    return {**{key: evaluation.report[key] for key in kept}, "results": evaluation.results}


def _described(plan: Plan, cell: Cell, recipe: Recipe) -> dict[str, Any]:
    """What is needed to train the cell again, and where it was trained."""
    changes = [f"{field}={value}".lower() for field, value in {**cell.variant.changes, "seed": cell.seed}.items()]
    given = [text for text in plan.assignments if text.partition("=")[0] != "max_steps"]
    sets = [
        word
        for text in (*given, *changes, "val_fraction=0", f"max_steps={recipe.max_steps}")
        for word in ("--set", text)
    ]
    device = plan.device or choose_device(None, recipe.accelerator)
    return {
        "network": cell.variant.key,
        "seed": cell.seed,
        "command": shlex.join(["pliant", "train", plan.name, "--data", plan.data.name, *sets]),
        "commit": machine.commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_name(),
        "versions": versions(),
    }


def _curve(run: RunFolder) -> list[dict[str, float]]:
    """The metrics of each validation, with the mean size of the offsets in the steps before it."""
    training, validation = (_rows(run.path / name) for name in ("train.csv", "val.csv"))
    for point in validation:
        sizes = [row["mean_offset"] for row in training if "mean_offset" in row and row["step"] <= point["step"]]
        if sizes:
            point["mean_offset"] = statistics.mean(sizes[-_STEPS_OF_AN_OFFSET:])
    return validation


def _rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
