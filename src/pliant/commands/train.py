"""`pliant train`: train a recipe, or resume a run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from pliant.console import Console, Progress, printable
from pliant.data import ImageSet
from pliant.devices import choose_device
from pliant.engine.fitting import fit
from pliant.launch import ALONE, Launch, is_first
from pliant.recipes import find_recipe, override
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.curves import curves_at_end
from pliant.runs.extension import extended, record, schedule_said
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.initial_weights import read_initial
from pliant.runs.start import Start
from pliant.runs.training import batch_groups, describe, fit_settings, start_module, weights_description
from pliant.tasks.data_report import data_lines, data_table, describe_data, missing_splits, read_splits, title
from pliant.tasks.sources import require_folder
from pliant.tasks.splits import choose_splits, open_training_data
from pliant.tasks.startable import endless_warm_up, require_startable
from pliant.tasks.task import stored_recipe, task_of


def train(
    name: str,
    data: Path,
    *,
    assignments: Sequence[str] = (),
    run: Path | None = None,
    strict: bool = False,
    launch: Launch = ALONE,
    device: str | None = None,
) -> RunFolder:
    """Train a recipe from the start.

    Args:
        name: Name of the recipe, such as ``"voc.faster_rcnn_deform"``.
        data: The folder of the data.
        assignments: Changes of the recipe's fields, ``field=value``.
        run: The folder to write to; None for ``runs/NAME``.
        strict: Whether the first problem of the data is an error.
        launch: The processes that share each batch, each with a GPU or on the CPU.
        device: The device, such as ``"cuda"``; None for one that the recipe's accelerator allows.

    Returns:
        The folder of the finished run.

    Raises:
        ValueError: If there is no such recipe or field, a value is not of its type or range, the recipe lacks
            something to start (see `require_startable`), or the folder already holds something.
        DataError: If the data cannot be used.
        ChildProcessError: If one of several processes died.
    """
    recipe = override(find_recipe(name), assignments)
    folder = RunFolder(Path("runs") / name if run is None else run)
    if is_first():
        folder.require_free()
    require_folder(data)
    require_startable(recipe)  # weights that are missing are said before the data are read
    chosen = None if device is None else choose_device(device)
    with Progress(quiet=not is_first()) as progress, progress.task("looking at the data"):
        source = task_of(recipe).source(recipe, data)
        splits = choose_splits(recipe, data, {text.partition("=")[0].strip() for text in assignments}, source)
    if launch.needed:
        _share(launch, folder, recipe, chosen)
        return folder
    initial = read_initial(recipe)
    with Progress(quiet=not is_first()) as progress, progress.task("reading the data"):
        opened = open_training_data(recipe, data, splits, strict=strict, source=source)
    asked, recipe = recipe, task_of(recipe).completed(recipe, opened.train)
    lightning.seed_everything(recipe.seed, verbose=False)
    module, start = start_module(recipe, opened.classes, initial)
    ids = getattr(opened.train, "category_ids", None)
    description = describe(name, assignments, recipe, opened.classes, splits, data, strict, ids)
    if start is not None:
        description["start"] = start.record()
    groups = batch_groups(recipe, opened.train)
    found = describe_data(source, splits, opened.by_split())
    made = RunFolder.new(folder.path, description, found) if is_first() else contextlib.nullcontext(folder)
    with made as folder:
        report_problems(folder, opened.by_split())
        _say_what(recipe, name, found, opened.train, folder, start)
        _say_completed(asked, recipe)
        with curves_at_end(folder):
            fit(module, opened, folder, fit_settings(recipe, chosen), weights_description(description), groups)
    _console().print(f"Trained. Weights: {folder.weights()}")
    return folder


def resume(
    run: Path,
    *,
    data: Path | None = None,
    assignments: Sequence[str] = (),
    launch: Launch = ALONE,
    device: str | None = None,
) -> RunFolder:
    """Continue an interrupted run, with the losses that it would have had without the interruption, or extend a run.

    Args:
        run: The folder of the run.
        data: The folder of the data, if it has moved.
        assignments: Changes for the steps to come, ``field=value``; see `pliant.runs.extension`.
        launch, device: See `train`; they may differ from those of the interrupted run.

    Raises:
        ValueError: If the folder is not a run folder, its checkpoint or the data do not belong to the run, or a change
            cannot be made in a run.
    """
    folder = RunFolder.open(run)
    description = folder.description()
    before = stored_recipe(description["kind"], description["fields"])
    step = resume_step(folder.last)
    recipe = extended(folder, before, description["recipe"], assignments, step)
    chosen = None if device is None else choose_device(device)
    if launch.needed:
        _share(launch, folder, recipe, chosen)
        return folder
    root = Path(description["data"]) if data is None else data
    classes = tuple(description["classes"])
    splits = read_splits(description["splits"], folder.data())
    source = task_of(recipe).source(recipe, root)
    with Progress(quiet=not is_first()) as progress, progress.task("reading the data"):
        opened = open_training_data(recipe, root, splits, classes=classes, strict=description["strict"], source=source)
    lightning.seed_everything(recipe.seed, verbose=False)
    # The weights come from the checkpoint; only without one does the run start again.
    anew = not folder.last.is_file()
    module, begun = start_module(recipe, classes, read_initial(recipe) if anew else None, pretrained=anew)
    if is_first():
        record(folder, description, before, recipe, step)
    description["fields"] = to_fields(recipe)
    report_problems(folder, opened.by_split())
    found = describe_data(source, splits, opened.by_split())
    _say_what(recipe, description["recipe"], found, opened.train, folder, begun)
    if assignments:
        said, jumps = schedule_said(before.schedule, recipe.schedule, step)
        _console().print(f"{'schedule':>10}  {said}", style="yellow" if jumps else None)
    groups = batch_groups(recipe, opened.train)
    with curves_at_end(folder):
        start = fit(module, opened, folder, fit_settings(recipe, chosen), weights_description(description), groups)
    if start >= recipe.max_steps:
        _console().print(f"This run is finished: {start} of {recipe.max_steps} steps are done.")
    else:
        _console().print(f"Continued after step {start}. Weights: {folder.weights()}")
    return folder


def _share(launch: Launch, folder: RunFolder, recipe: Recipe, device: torch.device | None) -> None:
    """Train in several processes."""
    if launch.devices and recipe.batch_size % launch.devices:
        raise ValueError(
            f"batch_size ({recipe.batch_size}) must be divisible by the number of devices ({launch.devices})"
        )
    try:
        launch.run(recipe.accelerator if device is None else device.type)
    except ChildProcessError as error:
        hint = f"; continue with: pliant train --resume {folder.path}" if folder.last.is_file() else ""
        raise ChildProcessError(f"{error}{hint}") from None


def _console() -> Console:
    """A console that prints in the first process only."""
    return Console(stderr=True, quiet=not is_first())


def report_problems(folder: RunFolder, sets: dict[str, ImageSet]) -> None:
    """Print the number of problems of the data, and write all of them to ``problems.txt`` of the run."""
    if not is_first():
        return
    path = folder.path / "problems.txt"
    lines = []
    for purpose, dataset in sets.items():
        for problem in dataset.problems:
            lines.append(printable(f"{purpose}: {problem.path}: {problem.kind}: {problem.detail} ({problem.action})"))
        if len(dataset.problems):
            counts = ", ".join(f"{count} x {kind}" for kind, count in dataset.problems.counts().items())
            _console().print(f"Problems in the data ({purpose}): {counts}. All are in {path}", style="yellow")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _say_what(
    recipe: Recipe,
    name: str,
    found: dict[str, Any],
    training: ImageSet,
    folder: RunFolder,
    start: Start | None,
) -> None:
    """Print what is about to be trained, on what."""
    console = _console()
    console.print(title(found))
    console.print(data_table(found))
    console.print(*data_lines(found), sep="\n")
    said = {
        **missing_splits(found),
        "recipe": name,
        "steps": f"{recipe.max_steps} of {recipe.batch_size} images, learning rate {recipe.scaled_lr:g}",
        "run folder": folder.path,
    }
    if start is not None:
        said |= start.lines()
    doubts = task_of(recipe).doubts(recipe)
    if warm_up := endless_warm_up(recipe):
        doubts["warm-up"] = warm_up
    for key, value in {**said, **doubts}.items():
        console.print(f"{key:>10}  {value}", style="yellow" if key in doubts else None)
    if absent := training.absent():
        console.print(f"train: {absent}", style="yellow")


def _say_completed(asked: Recipe, recipe: Recipe) -> None:
    """Print the values that the training images determined."""
    values = to_fields(recipe)
    for name, value in to_fields(asked).items():
        if values[name] != value:
            found = ", ".join(map(str, values[name])) if isinstance(values[name], tuple) else values[name]
            _console().print(f"{name}={found}, from the training images")
