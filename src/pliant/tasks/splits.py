"""Which splits of a data set are trained on, validated on and evaluated, and the data sets of a training."""

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
        """The data sets there are, by what they are for."""
        return {"train": self.train} | ({} if self.validation is None else {"validation": self.validation})


def choose_splits(recipe: Recipe, root: Path, explicit: Collection[str] = ()) -> Splits:
    """The splits of a recipe that the data has, or, where it has none of them, the usual names.

    Of several that a recipe joins by ``+``, those are taken that are there.

    Args:
        recipe: Says what to look for.
        root: The data.
        explicit: Names of split fields that a user asked for; these are taken as they are.

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
    """The split of a recipe to evaluate on that the data has, or the usual name; no split to train on is needed.

    Raises:
        DataError: If there is none, or the folder is missing.
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
    # Without a test split, the validation split is evaluated on, so it must not be trained on.
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
        recipe: Says how they are read and transformed.
        root: The folder.
        splits: Their splits.
        classes: The names to use; none means the recipe's or those in the data.
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

    Nothing is read for this: pixels are counted when masks are opened, which is done anyway to find those that cannot
    be used.

    Raises:
        DataError: If there is no box, pixel or image of any class.
    """
    if not any(dataset.class_counts()):
        raise DataError(dataset.root, f"there is nothing to train on: {dataset.absent()}")
