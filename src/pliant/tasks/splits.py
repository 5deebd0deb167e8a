"""Choosing the splits to train on, validate on and evaluate, and opening the data sets of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pliant.data import DataError, ImageSet
from pliant.data.discovery import WHOLE
from pliant.recipes.base import Recipe
from pliant.tasks.sources import Division, MadeSplit, Source, make_splits
from pliant.tasks.task import task_of

_TRAIN_NAMES = ("train", "trainval", "train2017", "training")
_VALIDATION_NAMES = ("val", "valid", "validation", "val2017")
_TEST_NAMES = ("test", "test2007")


@dataclass(frozen=True)
class Splits:
    """Names of the splits to train on, to validate on during training, and to evaluate on.

    Attributes:
        train, validation, test: the names; None if there is no such split.
        made: those of them that Pliant made, because the data have none.
        notes: sentences about how they were made.
    """

    train: str
    validation: str | None
    test: str | None
    made: Mapping[str, MadeSplit] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def names(self) -> dict[str, str | None]:
        """The names by purpose, for JSON."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class TrainingData:
    """Data sets with the transforms and batches of a recipe."""

    train: ImageSet
    validation: ImageSet | None
    collate_train: Callable[[Any], Any]
    collate_evaluation: Callable[[Any], Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.train.classes

    def by_split(self) -> dict[str, ImageSet]:
        """The data sets by their purpose, without a validation set if there is none."""
        return {"train": self.train} | ({} if self.validation is None else {"validation": self.validation})


def choose_splits(recipe: Recipe, root: Path, explicit: Collection[str] = (), source: Source | None = None) -> Splits:
    """The splits that a recipe names, or the usual ones if the data has none of those.

    If a recipe joins several splits by ``+``, those that the data has are used. If the data has no split to validate
    on, a part of the training split is held out, unless the recipe names the training split; without a split to
    evaluate on, the validation split is evaluated, or a further part of data that are not split at all.

    Args:
        recipe: The recipe that names the splits.
        root: The folder of the data.
        explicit: Names of the recipe's fields that the user has set; splits named there are used unchanged.
        source: The data in `root`; None to find them.

    Raises:
        DataError: If there is nothing to train on, or the folder is missing.
    """
    source = task_of(recipe).source(recipe, root) if source is None else source
    there = source.splits()
    named = _named(recipe, source, "train_split", explicit)
    train = named or _usual_train(there)
    if train is None:
        raise _no_split(source, there, "train on", "--set train_split=NAME")
    named_test = _named(recipe, source, "test_split", explicit)
    test = named_test or next((name for name in _TEST_NAMES if name in there and name != train), None)
    validation = _named(recipe, source, "val_split", explicit)
    if validation is None and train in there:
        covered = {train, named_test} | ({"val"} if train == "trainval" else set())
        validation = next((name for name in _VALIDATION_NAMES if name in there and name not in covered), None)
    made: dict[str, MadeSplit] = {}
    notes: tuple[str, ...] = ()
    if validation is None and (named is None or "val_fraction" in explicit):
        made, notes = _hold_out(recipe, root, source, train, test)
        if made:
            train, validation = "train", "val" if "val" in made else None
            test = "test" if "test" in made else test
    return Splits(train, validation, test or validation, made, notes)


def _usual_train(there: list[str]) -> str | None:
    """The split to train on by its name, or the only one, unless it is to validate on or to evaluate."""
    usual = next((name for name in (*_TRAIN_NAMES, WHOLE) if name in there), None)
    if usual is None and len(there) == 1 and there[0] not in (*_VALIDATION_NAMES, *_TEST_NAMES):
        return there[0]
    return usual


def _hold_out(recipe: Recipe, root: Path, source: Source, train: str, test: str | None) -> Division:
    """Parts of the training split to validate on and, without another split, to evaluate on."""
    fractions = {"val": recipe.val_fraction, "test": 0.0 if test is not None else recipe.test_fraction}
    wanted = {name: fraction for name, fraction in fractions.items() if fraction}
    if not wanted:
        return Division({}, ())
    known = None
    with contextlib.suppress(DataError):  # which is raised again when the split is opened
        known = task_of(recipe).open(recipe, root, train, source=source)
    return make_splits(source, train, wanted, "train", recipe.split_seed, known)


def choose_test_split(recipe: Recipe, root: Path, source: Source | None = None) -> str:
    """The split to evaluate on, as in `choose_splits`; the data need not have a split to train on.

    Raises:
        DataError: If there is no such split, or the folder is missing.
    """
    source = task_of(recipe).source(recipe, root) if source is None else source
    there = source.splits()
    test = _named(recipe, source, "test_split", ())
    test = test or next((name for name in (*_TEST_NAMES, *_VALIDATION_NAMES) if name in there), None)
    if test is None and _usual_train(there) is not None:
        test = choose_splits(recipe, root, source=source).test
    if test is None:
        raise _no_split(source, there, "evaluate on", "--split NAME")
    return test


def _no_split(source: Source, there: list[str], purpose: str, option: str) -> DataError:
    advice = f"Name one with {option}" if there else source.layout.a_split
    return DataError(source.root, f"found no split to {purpose}; splits there: {', '.join(there) or 'none'}. {advice}")


def _named(recipe: Recipe, source: Source, name: str, explicit: Collection[str]) -> str | None:
    """The split that a field of the recipe names: those parts that the data has, or all if the user has set it."""
    asked: str | None = getattr(recipe, name)
    if asked is None or name in explicit:
        return asked
    return "+".join(part for part in asked.split("+") if part and source.has(part)) or None


def open_training_data(
    recipe: Recipe,
    root: Path,
    splits: Splits,
    *,
    classes: tuple[str, ...] = (),
    strict: bool = False,
    source: Source | None = None,
) -> TrainingData:
    """The data sets to train and validate on.

    Args:
        recipe: The recipe that determines how they are read and transformed.
        root: The folder of the data.
        splits: The splits to open.
        classes: Names of the classes; empty for the recipe's or those in the data.
        strict: Whether the first problem of the data is an error.
        source: The data in `root`; None to find them.

    Raises:
        DataError: If a split is missing or holds no usable image, or there is nothing to learn of any class.
    """
    task = task_of(recipe)
    source = task.source(recipe, root) if source is None else source
    options: dict[str, Any] = {"strict": strict, "source": source, "made": splits.made}
    train = task.open(recipe, root, splits.train, training=True, classes=classes, **options)
    require_content(train)
    validation = None
    if splits.validation is not None:
        validation = task.open(recipe, root, splits.validation, classes=train.classes, **options)
        validation.skip_damaged()
    return TrainingData(
        train=train,
        validation=validation,
        collate_train=task.collate(training=True),
        collate_evaluation=task.collate(training=False),
    )


def require_content(dataset: ImageSet) -> None:
    """Refuse a data set that has nothing to learn of any class.

    This reads no files: the pixels of masks were counted when the data set was opened.

    Raises:
        DataError: If there is no box, pixel or image of any class.
    """
    if not any(dataset.class_counts()):
        raise DataError(dataset.root, f"there is nothing to train on: {dataset.absent()}")
