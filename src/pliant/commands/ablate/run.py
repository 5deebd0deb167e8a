"""`pliant ablate`: train and evaluate the networks of the paper's tables 1 and 3 on any data, with the same seeds."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import Subset

from pliant.commands.ablate.grid import Cell, Variant, cells, variants
from pliant.commands.ablate.report import REPORT, AblationView, one_class_alone, write_report
from pliant.console import Console, Progress
from pliant.data import DataError, ImageSet
from pliant.data.glyphs_folder import write_glyphs
from pliant.devices import choose_device
from pliant.engine.fitting import evaluate, fit
from pliant.launch import count
from pliant.outputs import Outputs
from pliant.recipes import find_recipe, override
from pliant.recipes.base import Recipe
from pliant.runs.evaluation import evaluate_trained, open_for_evaluation
from pliant.runs.files import write_json
from pliant.runs.folder import RunFolder
from pliant.runs.trained import load_trained
from pliant.runs.training import batch_groups, build_module, describe, fit_settings, weights_description
from pliant.tasks.data_report import describe_data
from pliant.tasks.splits import Splits, TrainingData, choose_splits, open_training_data
from pliant.tasks.startable import require_startable
from pliant.tasks.task import task_of

PLAN = "ablation.json"

GLYPHS = (
    "backbone=timm/resnet10t",
    "frozen=false",
    "batch_size=8",
    "lr_batch=8",
    "lr=0.02",
    "warmup_steps=20",
    "max_steps=300",
    "short_side=128",
    "max_side=128",
    "flip=0",
)
"""Changes of the recipe for Glyphs: a small network that is trained from random weights."""

_TRIAL_STEPS = 4
_TRIAL_IMAGES = 8
_LEAST_STEPS = 10
_HELD_BACK = 0.05  # part of a budget that is kept for what the trial did not measure


@dataclass(frozen=True)
class Plan:
    """What is trained in every cell.

    Attributes:
        asked: The user's arguments, which show whether a folder holds the same ablation.
        name: Name of the recipe.
        assignments: Changes of the recipe's fields, ``field=value``.
        recipe: The recipe with these changes and the number of steps.
        data: The folder of the data.
        splits: Splits to train and to evaluate on. There is no validation, so all cells are evaluated after the last
            step.
        found: What the data holds, for ``data.json`` of each run.
        seeds: Number of seeds.
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
    device: torch.device | None = None


def ablate(
    out: Path,
    data: Path | None = None,
    *,
    name: str = "voc.deeplab",
    assignments: Sequence[str] = (),
    seeds: int = 3,
    budget: str | None = None,
    device: str | None = None,
) -> Path:
    """Train and evaluate the networks of the tables, and write both tables with a plot.

    Called again with the same arguments, it continues where it stopped. A network whose loss diverges is reported as
    failed.

    Args:
        out: The folder to write to.
        data: The folder of the data; None for Glyphs, which are drawn into `out`.
        name: Name of the recipe.
        assignments: Changes of the recipe's fields for all networks, ``field=value``.
        seeds: Number of times that each network is trained, with the seeds 0, 1, ...
        budget: Time for the complete ablation, such as ``"20m"`` or ``"1h30m"``, which determines the number of steps;
            None for the recipe's number of steps.
        device: The device, such as ``"cuda"``; None for one that the recipe's accelerator allows.

    Returns:
        The path of the tables, a Markdown file.

    Raises:
        ValueError: If an argument is wrong, `out` holds something else, or the budget is too small.
        DataError: If the data cannot be used.
    """
    if count() > 1:
        raise ValueError("an ablation runs in one process")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    start = time.monotonic()
    seconds = None if budget is None else parse_duration(budget)
    chosen_device = None if device is None else choose_device(device)
    own = GLYPHS if data is None else ()
    recipe = override(find_recipe(name), (*own, *assignments))
    if data is not None:
        choose_splits(recipe, data)  # raises if the data cannot be used, before anything is written
    require_startable(recipe)
    chosen = variants(recipe)
    place = "glyphs" if data is None else str(data.resolve())
    asked = {"recipe": name, "assignments": list(assignments), "data": place, "seeds": seeds, "budget": budget}
    outputs = Outputs(out, (PLAN, *REPORT), own=True)
    steps = _steps(out, asked)
    outputs.claim()
    folder = _draw_glyphs(out, recipe) if data is None else data
    splits = choose_splits(recipe.replaced(val_fraction=0.0), folder)  # nothing is chosen by validation
    test = splits.test
    if test is None:
        raise DataError(folder, "found no split to evaluate on; name one with --set test_split=NAME")
    splits = Splits(splits.train, None, test, splits.made)
    source = task_of(recipe).source(recipe, folder)
    opened = open_training_data(recipe, folder, splits, source=source)
    recipe = task_of(recipe).completed(recipe, opened.train)
    found = describe_data(source, splits, {"train": opened.train})
    plan = Plan(asked, name, (*own, *assignments), recipe, folder, splits, found, seeds, chosen_device)
    if steps is None:
        steps = recipe.max_steps if seconds is None else _affordable(plan, chosen, opened, seconds, start)
        with outputs.writing(PLAN) as (path,):
            write_json(path, {**asked, "steps": steps})
    plan = dataclasses.replace(plan, recipe=dataclasses.replace(recipe, max_steps=steps))
    todo = cells(chosen, seeds, out)
    try:
        with AblationView(todo, test, plan.recipe) as view:
            for cell in todo:
                if cell.results(test) is None:
                    _run(plan, cell, opened, view.stepping(cell))
                view.finished(cell)
    finally:
        report = write_report(outputs, todo, test, plan.recipe, {**asked, "steps": steps})
    if alone := one_class_alone(todo, test, plan.recipe):
        Console(stderr=True).print(alone, style="yellow")
    return report


def parse_duration(text: str) -> float:
    """Convert a text such as ``"90s"``, ``"20m"`` or ``"1h30m"`` to seconds.

    Raises:
        ValueError: If the text is not a duration above zero.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    parts = [] if match is None else [int(part or 0) for part in match.groups()]
    if not any(parts):
        raise ValueError(f"expected a duration such as 90s, 20m or 1h30m, got {text!r}")
    hours, minutes, seconds = parts
    return float(3600 * hours + 60 * minutes + seconds)


def _steps(out: Path, asked: dict[str, Any]) -> int | None:
    """The number of steps of the ablation in `out`; None if there is none.

    Raises:
        ValueError: If the ablation in `out` has other arguments.
    """
    path = out / PLAN
    if not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{key} is {held.get(key)} there and {value} here" for key, value in asked.items() if held.get(key) != value
    ]
    if differing:
        raise ValueError(f"{out} holds another ablation: {'; '.join(differing)}. Choose another folder with --out")
    return int(held["steps"])


def _draw_glyphs(out: Path, recipe: Recipe) -> Path:
    folder = out / "glyphs"
    if not folder.is_dir():
        # The folder gets its name only when it is complete.
        temporary = Path(tempfile.mkdtemp(dir=out, prefix="glyphs"))
        scenes: dict[str, Any] = {
            "size": recipe.short_side,
            "digits": (1, 3),
            "sides": (24, recipe.short_side - 8),
            "warp": 0.5,
        }
        with Progress() as progress, progress.task("drawing the digits"):
            write_glyphs(temporary, {"train": 600, "test": 150}, **scenes)
        temporary.rename(folder)
    return folder


def _run(plan: Plan, cell: Cell, opened: TrainingData, watch: Callable[[int], None]) -> None:
    """Train and evaluate a cell, from its checkpoint if it has one."""
    recipe = dataclasses.replace(plan.recipe, **cell.variant.changes, seed=cell.seed)
    run = RunFolder(cell.folder)
    if not run.description_path.is_file():
        run.clear()
        description = describe(plan.name, plan.assignments, recipe, opened.classes, plan.splits, plan.data)
        run = RunFolder.create(cell.folder, description, plan.found)
    try:
        _fit(plan, recipe, run, opened, watch)
    except FloatingPointError as error:
        write_json(cell.folder / "failed.json", {"failed": str(error)})
        return
    _evaluate(plan, cell)
    run.last.unlink()  # the files of weights are kept


def _evaluate(plan: Plan, cell: Cell) -> None:
    """Evaluate a trained cell, and write what `Cell.results` reads."""
    trained, split = load_trained(cell.folder), str(plan.splits.test)
    dataset = open_for_evaluation(trained, plan.data, split, quiet=True)
    evaluation = evaluate_trained(trained, dataset, split, device=plan.device, show=False)
    path = cell.report(split)
    with Outputs.file(path).writing(path.name) as (place,):
        write_json(place, {**evaluation.report, "results": evaluation.results})


def _fit(plan: Plan, recipe: Recipe, run: RunFolder, opened: TrainingData, watch: Callable[[int], None]) -> None:
    lightning.seed_everything(recipe.seed, verbose=False)
    module = build_module(recipe, opened.classes, pretrained=not run.last.is_file())
    description = weights_description(run.description())
    settings = fit_settings(recipe, plan.device)
    fit(module, opened, run, settings, description, batch_groups(recipe, opened.train), watch)


def _affordable(plan: Plan, chosen: Sequence[Variant], opened: TrainingData, budget: float, start: float) -> int:
    """The number of steps of each cell that fit into a budget, estimated from a few steps and images of each network.

    Raises:
        ValueError: If fewer than `_LEAST_STEPS` fit.
    """
    test = task_of(plan.recipe).open(
        plan.recipe, plan.data, str(plan.splits.test), classes=opened.classes, made=plan.splits.made
    )
    with Progress() as progress:
        trials = [_trial(plan, variant, opened, test) for variant in progress.track(chosen, "timing the networks")]
    of_step = plan.seeds * sum(step for step, _ in trials)
    fixed = plan.seeds * sum(rest for _, rest in trials)
    left = budget * (1 - _HELD_BACK) - (time.monotonic() - start) - fixed
    if left < _LEAST_STEPS * of_step:
        needed = (budget - left + _LEAST_STEPS * of_step) / 60
        raise ValueError(
            f"{len(chosen)} networks with {plan.seeds} seeds do not fit into {plan.asked['budget']}: {_LEAST_STEPS} "
            f"steps for each would take about {needed:.0f} minutes in all; allow more, or take fewer seeds"
        )
    return int(left / of_step)


def _trial(plan: Plan, variant: Variant, opened: TrainingData, test: ImageSet) -> tuple[float, float]:
    """Measure the seconds of a step, and of the rest of a cell: building the network, writing the run, evaluating."""
    recipe = dataclasses.replace(plan.recipe, **variant.changes, max_steps=_TRIAL_STEPS)
    ticks = [time.monotonic()]
    with tempfile.TemporaryDirectory() as folder:
        description = describe(plan.name, plan.assignments, recipe, opened.classes, plan.splits, plan.data)
        run = RunFolder.create(Path(folder) / "trial", description)
        _fit(plan, recipe, run, opened, lambda step: ticks.append(time.monotonic()))
    trained = time.monotonic()
    step = (ticks[-1] - ticks[1]) / (_TRIAL_STEPS - 1)
    module = build_module(recipe, opened.classes, pretrained=False)
    times = []
    collate = task_of(recipe).collate(training=False)
    images = min(_TRIAL_IMAGES, len(test))
    for some in (1, images):
        begun = time.monotonic()
        evaluate(module, Subset(test, range(some)), collate, fit_settings(recipe, plan.device), show=False)
        times.append(time.monotonic() - begun)
    of_image = max(times[1] - times[0], 0) / max(images - 1, 1)
    return step, trained - ticks[0] - step * _TRIAL_STEPS + times[0] + of_image * (len(test) - 1)
