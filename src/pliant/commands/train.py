"""Train what a recipe says."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning

from pliant import launch
from pliant.console import Console, Progress, printable
from pliant.data.image_set import some
from pliant.engine import ClassificationModule, DetectionModule, Schedule, SegmentationModule
from pliant.engine.batches import orientations
from pliant.engine.fitting import FitSettings, fit
from pliant.engine.training import TrainingModule
from pliant.recipes.base import ClassificationRecipe, Recipe, find_recipe, from_fields, kind_of, override, to_fields
from pliant.runs.folder import RunFolder
from pliant.tasks.datasets import ImageSet, Splits, choose_splits, open_training_data
from pliant.tasks.networks import RANDOM, build_model, lr_multipliers
from pliant.tasks.startable import endless_warm_up, require_startable, unfitting_anchors

_MOST_CLASSES = 40  # that are named when a training begins
_console = Console(stderr=True, quiet=not launch.is_first())


def train(
    name: str,
    data: Path,
    *,
    assignments: Sequence[str] = (),
    run: Path | None = None,
    strict: bool = False,
    devices: int | None = None,
) -> RunFolder:
    """Train a recipe from the start.

    Args:
        name: Of the recipe, such as ``"voc.faster_rcnn_deform"``.
        data: The folder of the data.
        assignments: Changes of the recipe's fields, ``field=value``.
        run: The folder to write to; ``runs/NAME`` if None.
        strict: Whether the first problem of the data is an error.
        devices: How many GPUs, or processes on the CPU, share each batch; None for one, or what torchrun says.

    Returns:
        The folder of the finished run.

    Raises:
        ValueError: If there is no such recipe or field, a value is not of its type or range, the training could not
            come to anything (see `require_startable`), or the folder is taken.
        DataError: If the data cannot be used.
        ChildProcessError: If one of several processes died.
    """
    recipe = override(find_recipe(name), assignments)
    folder = RunFolder(Path("runs") / name if run is None else run)
    if launch.is_first():
        folder.require_free()
    splits = choose_splits(recipe, data, {text.partition("=")[0].strip() for text in assignments})
    require_startable(recipe)
    if devices is not None and launch.must_launch(devices):
        options = [part for text in assignments for part in ("--set", text)] + ["--strict"] * strict
        _launch(["train", name, "--data", str(data), "--run", str(folder.path), *options], folder, recipe, devices)
        return folder
    with Progress(quiet=not launch.is_first()) as progress, progress.task("reading the data"):
        opened = open_training_data(recipe, data, splits, strict=strict)
    lightning.seed_everything(recipe.seed, verbose=False)
    module = build_module(recipe, opened.classes)
    ids = getattr(opened.train, "category_ids", None)
    description = describe(name, assignments, recipe, opened.classes, splits, data, strict, ids)
    groups = batch_groups(recipe, opened.train)
    made = RunFolder.new(folder.path, description) if launch.is_first() else contextlib.nullcontext(folder)
    with made as folder:
        report_problems(folder, opened.by_split())
        _say_what(recipe, name, splits, opened.train, opened.validation, folder)
        fit(module, opened, folder, fit_settings(recipe), weights_description(description), groups)
    _console.print(f"Trained. Weights: {folder.weights()}")
    return folder


def resume(run: Path, *, data: Path | None = None, devices: int | None = None) -> RunFolder:
    """Continue a run that was interrupted, with the losses it would have had.

    Args:
        run: Its folder.
        data: Where the data is now, if it was moved.
        devices: See `train`; it need not be what it was.

    Raises:
        ValueError: If it is no run folder, or its checkpoint or the data do not belong to it.
    """
    folder = RunFolder.open(run)
    description = folder.description()
    recipe = from_fields(description["kind"], description["fields"])
    if devices is not None and launch.must_launch(devices):
        moved = [] if data is None else ["--data", str(data)]
        _launch(["train", "--resume", str(run), *moved], folder, recipe, devices)
        return folder
    root = Path(description["data"]) if data is None else data
    classes = tuple(description["classes"])
    splits = Splits(**description["splits"])
    with Progress(quiet=not launch.is_first()) as progress, progress.task("reading the data"):
        opened = open_training_data(recipe, root, splits, classes=classes, strict=description["strict"])
    lightning.seed_everything(recipe.seed, verbose=False)
    # Without a checkpoint the first weights are needed again, else they come from it.
    module = build_module(recipe, classes, pretrained=not folder.last.is_file())
    report_problems(folder, opened.by_split())
    _say_what(recipe, description["recipe"], splits, opened.train, opened.validation, folder)
    groups = batch_groups(recipe, opened.train)
    start = fit(module, opened, folder, fit_settings(recipe), weights_description(description), groups)
    if start >= recipe.max_steps:
        _console.print(f"This run is finished: {start} of {recipe.max_steps} steps are done.")
    else:
        _console.print(f"Continued after step {start}. Weights: {folder.weights()}")
    return folder


def _launch(arguments: Sequence[str], folder: RunFolder, recipe: Recipe, devices: int) -> None:
    if recipe.batch_size % devices:
        raise ValueError(f"batch_size ({recipe.batch_size}) must be divisible by the number of devices ({devices})")
    launch.require_gpus(devices, recipe.accelerator)
    try:
        launch.launch(arguments, devices)
    except ChildProcessError as error:
        hint = f"; continue with: pliant train --resume {folder.path}" if folder.last.is_file() else ""
        raise ChildProcessError(f"{error}{hint}") from None


def build_module(recipe: Recipe, classes: tuple[str, ...], *, pretrained: bool = True) -> TrainingModule:
    """The network of a recipe with its schedule and metrics.

    Args:
        recipe: Of any kind.
        classes: The names of the classes: foreground for detection, the background's first for segmentation, all
            for classification.
        pretrained: Whether the backbone starts from the recipe's weights.
    """
    model = build_model(recipe, classes, pretrained=pretrained)
    schedule = Schedule(
        max_steps=recipe.max_steps,
        lr=recipe.scaled_lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        decay_at=recipe.decay_at,
        decay=recipe.decay,
        warmup_steps=recipe.warmup_steps,
        warmup_factor=recipe.warmup_factor,
    )
    kinds: dict[str, Callable[..., TrainingModule]] = {
        "detection": DetectionModule,
        "segmentation": SegmentationModule,
        "classification": ClassificationModule,
    }
    return kinds[kind_of(recipe)](model, schedule, classes, seed=recipe.seed, lr_mult=lr_multipliers(recipe, model))


def fit_settings(recipe: Recipe) -> FitSettings:
    """How the engine is to run a recipe."""
    return FitSettings(
        batch_size=recipe.batch_size,
        # Images of other kinds have different sizes.
        evaluation_batch_size=recipe.batch_size if isinstance(recipe, ClassificationRecipe) else 1,
        workers=recipe.workers,
        checkpoint_every=recipe.checkpoint_every,
        validate_every=recipe.validate_every,
        precision=recipe.precision,
        clip=recipe.clip,
        accelerator=recipe.accelerator,
    )


def batch_groups(recipe: Recipe, training: ImageSet) -> list[int] | None:
    """The group of each image, of which a batch holds one alone; None for a single group."""
    return orientations(training.sizes) if recipe.aspect_grouping else None


def describe(
    name: str,
    assignments: Sequence[str],
    recipe: Recipe,
    classes: Sequence[str],
    splits: Splits,
    data: Path,
    strict: bool = False,
    category_ids: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """What ``recipe.json`` of a run says: all that `resume` needs."""
    ids = [(category_ids or {}).get(label) for label in range(1, len(classes) + 1)]
    return {
        "recipe": name,
        "overrides": list(assignments),
        "kind": kind_of(recipe),
        "fields": to_fields(recipe),
        "classes": list(classes),
        "category_ids": None if None in ids else ids,
        "splits": dataclasses.asdict(splits),
        "data": str(data.resolve()),
        "strict": strict,
    }


def weights_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's description goes along with its weights: all but where its data lies on this machine."""
    return {key: value for key, value in description.items() if key not in ("data", "strict")}


def report_problems(folder: RunFolder, sets: dict[str, ImageSet]) -> None:
    """Print how many problems the data has, and write all of them to ``problems.txt`` of the run."""
    if not launch.is_first():
        return
    path = folder.path / "problems.txt"
    lines = []
    for purpose, dataset in sets.items():
        for problem in dataset.problems:
            lines.append(printable(f"{purpose}: {problem.path}: {problem.kind}: {problem.detail} ({problem.action})"))
        if len(dataset.problems):
            counts = ", ".join(f"{count} x {kind}" for kind, count in dataset.problems.counts().items())
            _console.print(f"Problems in the data ({purpose}): {counts}. All are in {path}", style="yellow")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _say_what(
    recipe: Recipe,
    name: str,
    splits: Splits,
    training: ImageSet,
    validation: ImageSet | None,
    folder: RunFolder,
) -> None:
    said: dict[str, object] = {
        "recipe": name,
        "train": f"{splits.train}, {len(training)} images",
        "validate": "no split is left for it (--set val_split=NAME)",
        "judge": splits.test or "no split (pliant eval --split NAME)",
        "classes": some(training.classes, _MOST_CLASSES),
        "steps": f"{recipe.max_steps} of {recipe.batch_size} images, learning rate {recipe.scaled_lr:g}",
        "run folder": folder.path,
    }
    if validation is not None:
        said["validate"] = f"{splits.validation}, {len(validation)} images"
    if recipe.weights in (None, RANDOM) and not isinstance(recipe, ClassificationRecipe):
        said["weights"] = (
            f"none: {'the backbone starts' if recipe.fixed_norms else 'all of the backbone is trained'} from random "
            "numbers (--set weights=FILE)"
        )
    if warm_up := endless_warm_up(recipe):
        said["warm-up"] = warm_up
    if unfit := unfitting_anchors(recipe):
        said["anchors"] = unfit
    for key, value in said.items():
        _console.print(f"{key:>10}  {value}", style="yellow" if key in ("weights", "warm-up", "anchors") else None)
    if absent := training.absent():
        _console.print(f"{splits.train}: {absent}", style="yellow")
