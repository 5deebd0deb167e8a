"""`pliant check`: say what a folder of data is, whether a recipe can be trained on it, and what is missing or wrong."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from pliant.console import Console, Progress, Table, styled
from pliant.data import DataError, DetectionSet, ImageSet
from pliant.data.image_set import some
from pliant.data.images import UnreadableFileError, read_image
from pliant.recipes import find_recipe, override, recipe_names
from pliant.recipes.base import Recipe
from pliant.tasks.data_report import data_lines, data_table, describe_data, missing_splits, title
from pliant.tasks.sources import Source
from pliant.tasks.splits import Splits, choose_splits, open_training_data, require_content
from pliant.tasks.startable import require_startable
from pliant.tasks.task import find_task, task_of

_MOST_NAMES = 10
_VERBS = {"train": "train", "validation": "validate", "test": "evaluate"}


def check(name: str, data: Path, *, assignments: Sequence[str] = (), deep: bool = False) -> bool:
    """Open the splits that a recipe trains and evaluates on, and print what they hold and what training lacks.

    Args:
        name: Name of the recipe.
        data: The folder of the data.
        assignments: Changes of the recipe's fields, ``field=value``.
        deep: Whether to decode every image as well.

    Returns:
        Whether training can start.

    Raises:
        ValueError: If there is no such recipe or field, or a value is not of its type.
    """
    recipe = override(find_recipe(name), assignments)
    console = Console()
    try:
        with Progress() as progress, progress.task("looking at the data"):
            source = task_of(recipe).source(recipe, data)
            splits = choose_splits(recipe, data, {text.partition("=")[0].strip() for text in assignments}, source)
    except DataError as error:
        _say_error(console, "cannot train:", error)
        _say_layouts(console, recipe)
        return False
    _say_splits(console, recipe, source, splits)
    sets: dict[str, ImageSet] = {}
    task, can_train, classes = task_of(recipe), True, recipe.classes
    for purpose, split in splits.names().items():
        if split is None:
            continue
        training, made = purpose == "train", splits.made
        try:
            with Progress() as progress, progress.task(f"reading {split}"):
                dataset = task.open(recipe, data, split, training=training, classes=classes, source=source, made=made)
            if purpose == "train":
                require_content(dataset)
        except DataError as error:
            _say_error(console, f"{_VERBS[purpose]}: {split} cannot be used:", error)
            can_train = can_train and purpose != "train"
            continue
        classes, sets[purpose] = dataset.classes, dataset
        if deep and not _decode(dataset):
            console.print(f"{_VERBS[purpose]}: no image of {split} can be decoded", style="red")
            can_train = can_train and purpose != "train"
        _say_content(console, _VERBS[purpose], split, dataset)
    _say_found(console, describe_data(source, splits, sets))
    if not can_train:
        _say_layouts(console, recipe)
    startable = _say_whether_startable(console, recipe)
    if not can_train:
        console.print("Training cannot start.", style="red")
    elif startable:
        console.print("Training can start.", style="green")
    else:
        console.print("The data can be trained on, once that is set.", style="green")
    return can_train


def identify(data: Path) -> bool:
    """Print what a folder of data is, what it holds, and which recipes can be trained on it.

    Args:
        data: The folder of the data.

    Returns:
        Whether a recipe can be trained on it.
    """
    console = Console()
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name in recipe_names():
        by_kind[find_recipe(name).kind].append(name)
    fitting: list[str] = []
    reasons: list[tuple[str, DataError]] = []
    for kind, names in sorted(by_kind.items(), key=lambda each: not find_task(each[0]).annotation_files):
        if fitting and not find_task(kind).annotation_files:
            continue  # folders of images and of annotations are no classes
        recipe = find_recipe(names[0]).replaced(train_split=None, test_split=None)
        try:
            with Progress() as progress, progress.task("reading the data"):
                source = task_of(recipe).source(recipe, data)
                splits = choose_splits(recipe, data, source=source)
                opened = open_training_data(recipe, data, splits, source=source)
        except DataError as error:
            reasons.append((kind, error))
            continue
        _say_found(console, describe_data(source, splits, opened.by_split()))
        fitting.append(kind)
    for kind in fitting:
        names = by_kind[kind]
        console.print("", f"Recipes for {kind}, all of which fit:", *_by_module(names), sep="\n")
        shown = next((name for module in ("small.", "voc.") for name in names if name.startswith(module)), names[0])
        console.print(f"For example:  pliant check {shown} --data {shlex.quote(str(data))}")
    if not fitting:
        for kind, reason in reasons:
            _say_error(console, f"{kind}:", reason)
    return bool(fitting)


def _by_module(names: Sequence[str]) -> list[str]:
    """A line for each module of recipes."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name in names:
        module, _, function = name.partition(".")
        modules[module].append(function)
    return [f"  {module}. {' '.join(functions)}" for module, functions in modules.items()]


def _say_whether_startable(console: Console, recipe: Recipe) -> bool:
    """Print what training lacks apart from data, such as weights; return whether it lacks nothing."""
    try:
        require_startable(recipe)
    except (ValueError, OSError) as error:
        console.print(f"recipe: {error}", style="yellow")
        return False
    return True


def _say_splits(console: Console, recipe: Recipe, source: Source, splits: Splits) -> None:
    """Print which splits of the recipe the data does not have, and which are used in their place."""
    wanted = {"train": (recipe.train_split, splits.train), "evaluate": (recipe.test_split, splits.test)}
    for purpose, (asked, found) in wanted.items():
        if asked is not None and asked != found:
            instead = f"{found} is taken" if found else "none is taken"
            console.print(f"{purpose}: the recipe asks for {asked}; {instead}", style="yellow")
            for name, text in source.layout.extra:
                if source.found is None and name in asked.split("+") and name not in (found or "").split("+"):
                    console.print(*text.splitlines(), sep="\n")


def _say_found(console: Console, report: dict[str, Any]) -> None:
    """Print what was found."""
    console.print(title(report))
    console.print(data_table(report))
    console.print(*data_lines(report), *(f"{key}: {text}" for key, text in missing_splits(report).items()), sep="\n")


def _say_error(console: Console, what: str, error: DataError) -> None:
    first, *rest = str(error).splitlines()
    console.print(styled(what, "red"), first)
    if rest:
        console.print(*rest, sep="\n")


def _say_layouts(console: Console, recipe: Recipe) -> None:
    layouts = task_of(recipe).layouts
    for name in layouts if recipe.layout is None else [recipe.layout]:
        text = layouts[name].described(recipe.train_split)
        console.print("", f"The expected layout, {name}:", *text.splitlines(), sep="\n")


def _decode(dataset: ImageSet) -> int:
    """Report the images that cannot be decoded, and return how many can."""
    readable = 0
    with Progress() as progress:
        for path in progress.track(dataset.paths, "decoding the images"):
            try:
                read_image(path)
                readable += 1
            except UnreadableFileError as error:
                dataset.problems.report(path, "unreadable image", str(error))
    return readable


def _say_content(console: Console, purpose: str, split: str, dataset: ImageSet) -> None:
    counted, unit = _count(dataset)
    table = Table(title=f"{purpose}: {split}, {len(dataset)} images")
    table.add_column("class")
    table.add_column(unit, justify="right")
    for name, count in zip(dataset.classes, counted, strict=True):
        table.add_row(name, f"{count:,}")
    console.print(table)
    if len(dataset.problems):
        console.print(*dataset.problems.summary().splitlines(), sep="\n", style="yellow")
    absent = dataset.absent() if purpose == "train" else None
    for note in [*([absent] if absent else []), *_notes(dataset)]:
        console.print(f"{purpose}: {note}", style="yellow")


def _notes(dataset: ImageSet) -> list[str]:
    """Facts about a data set that are not problems, but may surprise its user."""
    notes = []
    if isinstance(dataset, DetectionSet) and dataset.left_out:
        names = some([path.name for path in dataset.left_out], _MOST_NAMES)
        notes.append(f"{_images(dataset.left_out)} no box to train on: {names}. They are left out")
    if dataset.turned:
        names = some([f"{path.name} ({number})" for path, number in dataset.turned.items()], _MOST_NAMES)
        notes.append(
            f"{_images(dataset.turned)} an EXIF orientation, which is not applied: {names}. Annotations must be of the "
            "pixels as they are stored, and nothing here tells whether they are"
        )
    return notes


def _images(images: Sized) -> str:
    return f"{len(images)} image{'s have' if len(images) > 1 else ' has'}"


def _count(dataset: ImageSet) -> tuple[list[int], str]:
    """Count each class, and name the unit; all boxes count, including those that are not trained on."""
    if not isinstance(dataset, DetectionSet):
        return dataset.class_counts(), f"{dataset.unit}s"
    counts = Counter(label for index in range(len(dataset)) for label in dataset.target(index)["labels"].tolist())
    return [counts[label] for label in range(1, len(dataset.classes) + 1)], "boxes"
