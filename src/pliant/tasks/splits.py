"""Choosing the splits to train on, validate on and evaluate, and opening the data sets of a training."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.data import DataError, ImageSet
from pliant.recipes.base import Recipe
from pliant.tasks.task import task_of

_TRAIN_NAMES = ("trainval", "train", "train2017", "training")
_VALIDATION_NAMES = ("val", "valid", "validation", "val2017")
_TEST_NAMES = ("test", "test2007", *_VALIDATION_NAMES)


@dataclass(frozen=True)
class Splits:
    """Names of the splits to train on, to validate on during training, and to evaluate on."""

    train: str
    validation: str | None
    test: str | None


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


def choose_splits(recipe: Recipe, root: Path, explicit: Collection[str] = ()) -> Splits:
    """The splits that a recipe names, or the usual ones if the data has none of those.

    If a recipe joins several splits by ``+``, those that the data has are used.

    Args:
        recipe: The recipe that names the splits.
        root: The folder of the data.
        explicit: Names of the recipe's split fields that the user has set; their values are used unchanged.

    Raises:
        DataError: If there is nothing to train on, or the folder is missing.
    """
    there = _splits_there(recipe, root)
    train = _choose_train(recipe, root, there, explicit)
    if train is None:
        raise _no_split(recipe, root, there, "train on", "--set train_split=NAME")
    test = _choose(recipe, root, there, "test_split", _TEST_NAMES, {train}, explicit)
    if recipe.val_split is not None:
        return Splits(train, recipe.val_split, test)
    covered = {train, test} | ({"val"} if train == "trainval" else set())
    validation = next((name for name in _VALIDATION_NAMES if name in there and name not in covered), None)
    return Splits(train, validation if train in there else None, test)


def choose_test_split(recipe: Recipe, root: Path) -> str:
    """The split to evaluate on, as in `choose_splits`; the data need not have a split to train on.

    Raises:
        DataError: If there is no such split, or the folder is missing.
    """
    there = _splits_there(recipe, root)
    train = _choose_train(recipe, root, there, ())
    test = _choose(recipe, root, there, "test_split", _TEST_NAMES, {train}, ())
    if test is None:
        raise _no_split(recipe, root, there, "evaluate on", "--split NAME")
    return test


def _splits_there(recipe: Recipe, root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(root, "there is no such folder of data")
    return task_of(recipe).layout(recipe).splits(root)


def _no_split(recipe: Recipe, root: Path, there: list[str], purpose: str, option: str) -> DataError:
    advice = f"Name one with {option}" if there else task_of(recipe).layout(recipe).a_split
    return DataError(root, f"found no split to {purpose}; splits there: {', '.join(there) or 'none'}. {advice}")


def _choose_train(recipe: Recipe, root: Path, there: list[str], explicit: Collection[str]) -> str | None:
    # Without a test split, the validation split is used for evaluation, so it must not be used for training.
    tests = tuple(set(_TEST_NAMES) - set(_VALIDATION_NAMES))
    has_test = _choose(recipe, root, there, "test_split", tests, set(), explicit) is not None
    usual = _TRAIN_NAMES if has_test or "train" not in there else _TRAIN_NAMES[1:]
    return _choose(recipe, root, there, "train_split", usual, set(), explicit)


def _choose(
    recipe: Recipe,
    root: Path,
    there: list[str],
    field: str,
    usual: tuple[str, ...],
    excluded: Collection[str | None],
    explicit: Collection[str],
) -> str | None:
    asked: str | None = getattr(recipe, field)
    if asked is not None and field in explicit:
        return asked
    layout = task_of(recipe).layout(recipe)
    parts = [part for part in (asked or "").split("+") if part and layout.has(root, part)]
    if parts:
        return "+".join(parts)
    return next((name for name in usual if name in there and name not in excluded), None)


def open_training_data(
    recipe: Recipe, root: Path, splits: Splits, *, classes: tuple[str, ...] = (), strict: bool = False
) -> TrainingData:
    """The data sets to train and validate on.

    Args:
        recipe: The recipe that determines how they are read and transformed.
        root: The folder of the data.
        splits: The splits to open.
        classes: Names of the classes; empty for the recipe's or those in the data.
        strict: Whether the first problem of the data is an error.

    Raises:
        DataError: If a split is missing or holds no usable image, or there is nothing to learn of any class.
    """
    task = task_of(recipe)
    train = task.open(recipe, root, splits.train, training=True, classes=classes, strict=strict)
    require_content(train)
    validation = None
    if splits.validation is not None:
        validation = task.open(recipe, root, splits.validation, classes=train.classes, strict=strict)
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
