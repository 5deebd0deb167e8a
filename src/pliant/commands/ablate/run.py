"""`pliant ablate`: train and evaluate the networks of the paper's tables 1 and 3 on any data, with the same seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from pliant.commands.ablate.cell import Plan, fit_cell
from pliant.commands.ablate.grid import Variant, cells, variants
from pliant.commands.ablate.jobs import run_cells
from pliant.commands.ablate.report import REPORT, write_report
from pliant.commands.ablate.results import PLAN, one_class_alone
from pliant.commands.ablate.view import AblationView
from pliant.console import Console, Progress
from pliant.data import DataError, ImageSet
from pliant.devices import choose_device
from pliant.engine.fitting import evaluate
from pliant.launch import count
from pliant.outputs import Outputs
from pliant.recipes import find_recipe, override
from pliant.runs.files import write_json
from pliant.runs.folder import RunFolder
from pliant.runs.training import build_module, describe, fit_settings
from pliant.tasks.data_report import describe_data
from pliant.tasks.sources import require_folder
from pliant.tasks.splits import TrainingData, choose_splits, open_training_data
from pliant.tasks.startable import require_startable
from pliant.tasks.task import task_of

_TRIAL_STEPS = 4
_TRIAL_IMAGES = 8
_LEAST_STEPS = 10
_HELD_BACK = 0.05  # part of a budget that is kept for what the trial did not measure


def ablate(
    out: Path,
    data: Path,
    *,
    name: str = "voc.deeplab",
    assignments: Sequence[str] = (),
    seeds: int = 3,
    budget: str | None = None,
    only: Sequence[str] = (),
    curve: int = 0,
    jobs: int = 1,
    device: str | None = None,
) -> Path:
    """Train and evaluate the networks of the tables, and write both tables with a plot.

    Called again with the same arguments, it continues where it stopped. A network whose loss diverges is reported as
    failed. Each finished cell is a small file in ``cells``, which is all that is needed to continue in another place.
    With `freeze_below` in the assignments, the maps of the frozen stages are computed once for all networks and kept in
    ``maps``.

    Args:
        out: The folder to write to.
        data: The folder of the data.
        name: Name of the recipe.
        assignments: Changes of the recipe's fields for all networks, ``field=value``.
        seeds: Number of times that each network is trained, with the seeds 0, 1, ...
        budget: Time for the complete ablation, such as ``"20m"`` or ``"1h30m"``, which determines the number of steps;
            None for the recipe's number of steps.
        only: Keys of the networks to compare, such as ``"layers-3"``; empty for all.
        curve: How many times each network is evaluated while it trains; 0 for the end alone.
        jobs: How many networks are trained at a time, each with its share of the threads.
        device: The device, such as ``"cuda"``; None for one that the recipe's accelerator allows.

    Returns:
        The path of the tables, a Markdown file.

    Raises:
        ValueError: If an argument is wrong, `out` holds something else, or the budget is too small.
        DataError: If the data cannot be used.
    """
    if count() > 1:
        raise ValueError("an ablation runs in one process")
    for name_, value, least in (("seeds", seeds, 1), ("curve", curve, 0), ("jobs", jobs, 1)):
        if value < least:
            raise ValueError(f"{name_} must be at least {least}, got {value}")
    start = time.monotonic()
    seconds = None if budget is None else parse_duration(budget)
    chosen_device = None if device is None else choose_device(device)
    outputs = Outputs(out, (PLAN, *REPORT), own=True)
    recipe = override(find_recipe(name), assignments)
    recipe = recipe.replaced(val_fraction=0.0)  # nothing is chosen by validation
    require_folder(data)
    require_startable(recipe)
    splits = choose_splits(recipe, data)
    if (test := splits.test) is None:
        raise DataError(data, "found no split to evaluate on; name one with --set test_split=NAME")
    splits = dataclasses.replace(splits, validation=test if curve else None)
    chosen = variants(recipe, only)
    asked = {
        "recipe": name,
        "assignments": list(assignments),
        "data": data.resolve().name,
        "networks": [variant.key for variant in chosen],
        "seeds": seeds,
        "budget": budget,
        "curve": curve,
    }
    steps = _steps(out, asked)
    outputs.claim()
    source = task_of(recipe).source(recipe, data)
    opened = open_training_data(recipe, data, splits, source=source)
    recipe = task_of(recipe).completed(recipe, opened.train)
    found = describe_data(source, splits, {"train": opened.train})
    maps = out / "maps"
    plan = Plan(asked, name, tuple(assignments), recipe, data, splits, found, seeds, maps, chosen_device)
    if steps is None:
        steps = recipe.max_steps if seconds is None else _affordable(plan, chosen, opened, seconds, start)
        with outputs.writing(PLAN) as (path,):
            write_json(path, {**asked, "steps": steps})
    every = math.ceil(steps / curve) if curve else recipe.validate_every
    plan = dataclasses.replace(plan, recipe=recipe.replaced(max_steps=steps, validate_every=every))
    todo = cells(chosen, seeds, out)
    try:
        with AblationView(todo, plan.recipe) as view:
            for cell in todo:
                if cell.results() is not None:
                    view.finished(cell)
            run_cells(plan, [cell for cell in todo if cell.results() is None], opened, jobs, view)
    finally:
        report = write_report(outputs)
    if alone := one_class_alone(todo, plan.recipe):
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


def _affordable(plan: Plan, chosen: Sequence[Variant], opened: TrainingData, budget: float, start: float) -> int:
    """The number of steps of each cell that fit into a budget, estimated from a few steps and images of each network.

    Several trainings at a time are taken to need as long as one after the other: they share the same cores.

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
        run = RunFolder.create(Path(folder) / "trial", description, plan.found)
        without_validation = dataclasses.replace(opened, validation=None)
        fit_cell(plan, recipe, run, without_validation, lambda step: ticks.append(time.monotonic()))
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
    evaluation = times[0] + of_image * (len(test) - 1)
    return step, trained - ticks[0] - step * _TRIAL_STEPS + (1 + plan.asked["curve"]) * evaluation
