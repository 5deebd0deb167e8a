"""The data a recipe asks for: which class reads it, which splits, and how samples are transformed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from pliant.data import (
    CityscapesSegmentation,
    COCODetection,
    DataError,
    ImageFolder,
    ImageSet,
    VOCDetection,
    VOCSegmentation,
    cityscapes,
    classification,
    coco,
    transforms,
    voc_layout,
)
from pliant.data.sbd import find_sbd
from pliant.engine.detection import collate_detection
from pliant.engine.segmentation import collate_evaluation, collate_training
from pliant.recipes.base import ClassificationRecipe, DetectionRecipe, Recipe, SegmentationRecipe

_TRAIN_NAMES = ("trainval", "train", "train2017", "training")
_VALIDATION_NAMES = ("val", "valid", "validation", "val2017")
_TEST_NAMES = ("test", "test2007", *_VALIDATION_NAMES)


@dataclass(frozen=True)
class Splits:
    """The names of the splits to train on, to validate on while training, and to judge on."""

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


class OriginalMask:
    """Transforms the image alone: the mask keeps the size it is judged at."""

    def __init__(self, transform: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self.transform = transform

    def __call__(self, image: Any, mask: Any) -> tuple[Any, Any]:
        return self.transform(image, mask)[0], mask


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
    """The split of a recipe to judge on that the data has, or the usual name; no split to train on is needed.

    Raises:
        DataError: If there is none, or the folder is missing.
    """
    there = _splits_there(recipe, root)
    train = _choose_train(recipe, root, there, ())
    test = _choose(recipe, root, there, "test_split", _TEST_NAMES, {train}, ())
    if test is None:
        raise _no_split(recipe, root, there, "judge on", "--split NAME")
    return test


def _splits_there(recipe: Recipe, root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(root, "there is no such folder of data")
    return _available(recipe, root)


def _no_split(recipe: Recipe, root: Path, there: list[str], purpose: str, option: str) -> DataError:
    advice = f"Name one with {option}" if there else _what_a_split_is(recipe)
    return DataError(root, f"found no split to {purpose}; splits there: {', '.join(there) or 'none'}. {advice}")


def _choose_train(recipe: Recipe, root: Path, there: list[str], explicit: Collection[str]) -> str | None:
    # Without a test split, the validation split is judged on, so it must not be trained on.
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
    parts = [part for part in (asked or "").split("+") if part and _exists(recipe, root, part)]
    if parts:
        return "+".join(parts)
    return next((name for name in usual if name in there and name not in excluded), None)


def _what_a_split_is(recipe: Recipe) -> str:
    if isinstance(recipe, ClassificationRecipe):
        return "A split is a folder, such as train, that holds a folder of images for each class"
    if recipe.layout == "coco":
        return "A split is a file such as annotations/instances_train.json, and a folder train with its images"
    if recipe.layout == "cityscapes":
        return "A split is a folder leftImg8bit/train, and a folder gtFine/train"
    return f"A split is a list of the images' names without their endings, such as ImageSets/{_task(recipe)}/train.txt"


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
    train = open_split(recipe, root, splits.train, training=True, classes=classes, strict=strict)
    require_content(train)
    validation = None
    if splits.validation is not None:
        validation = open_split(recipe, root, splits.validation, classes=train.classes, strict=strict)
        validation.skip_damaged()
    return TrainingData(
        train=train,
        validation=validation,
        collate_train=collate_training if isinstance(recipe, SegmentationRecipe) else collate_for_evaluation(recipe),
        collate_evaluation=collate_for_evaluation(recipe),
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


def collate_for_evaluation(recipe: Recipe) -> Callable[[Any], Any]:
    """How samples make a batch when a recipe of this kind is judged; those that are None are left out."""
    if isinstance(recipe, ClassificationRecipe):
        return partial(_collate_readable, default_collate)
    return partial(_collate_readable, collate_detection if isinstance(recipe, DetectionRecipe) else collate_evaluation)


def _collate_readable(collate: Callable[[Any], Any], samples: list[Any]) -> Any:
    readable = [sample for sample in samples if sample is not None]
    return collate(readable) if readable else ([], [])


def open_split(
    recipe: Recipe,
    root: Path,
    split: str,
    *,
    training: bool = False,
    classes: tuple[str, ...] = (),
    strict: bool = False,
) -> ImageSet:
    """One split, with the transforms for training or for judging; see `open_training_data`."""
    names = classes or recipe.classes or None
    if isinstance(recipe, ClassificationRecipe):
        return ImageFolder(root, split, classes=names, transforms=_classification(recipe, training), strict=strict)
    if isinstance(recipe, SegmentationRecipe):
        if recipe.layout == "coco":
            raise ValueError("segmentation reads layout=voc or layout=cityscapes, got layout=coco")
        masked = CityscapesSegmentation if recipe.layout == "cityscapes" else VOCSegmentation
        return masked(root, split, classes=names, transforms=_segmentation(recipe, training), strict=strict)
    if recipe.layout == "cityscapes":
        raise ValueError("detection reads layout=voc or layout=coco, got layout=cityscapes")
    options = {
        "classes": names,
        "transforms": transforms.detection_train(recipe.flip) if training else transforms.detection_eval(),
        "strict": strict,
        "require_boxes": training,
    }
    if recipe.layout == "coco":
        return COCODetection.from_folder(root, split, **options)
    return VOCDetection(root, split, **options)


def _segmentation(recipe: SegmentationRecipe, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
    if training:
        return transforms.segmentation_train(recipe.short_side, recipe.max_side, recipe.flip, _crop(recipe.crop))
    return OriginalMask(transforms.segmentation_eval(recipe.short_side, recipe.max_side))


def _classification(recipe: ClassificationRecipe, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
    if training:
        return transforms.classification_train(recipe.crop, recipe.flip)
    return transforms.classification_eval(recipe.short_side, recipe.max_side, recipe.crop)


def _crop(crop: tuple[int, ...] | None) -> tuple[int, int] | None:
    return None if crop is None else (crop[0], crop[-1])


def _task(recipe: Recipe) -> str:
    return "Segmentation" if isinstance(recipe, SegmentationRecipe) else "Main"


def _available(recipe: Recipe, root: Path) -> list[str]:
    if isinstance(recipe, ClassificationRecipe):
        return classification.available_splits(root)
    if recipe.layout == "coco":
        return coco.available_splits(root)
    if recipe.layout == "cityscapes":
        return cityscapes.available_splits(root)
    return voc_layout.available_splits(voc_layout.find_folders(root), _task(recipe))


def _exists(recipe: Recipe, root: Path, split: str) -> bool:
    if recipe.layout != "voc" or isinstance(recipe, ClassificationRecipe):
        return split in _available(recipe, root)
    if split == "sbd" and isinstance(recipe, SegmentationRecipe):
        return find_sbd(root) is not None
    try:
        return bool(voc_layout.read_split(voc_layout.find_folders(root), _task(recipe), split))
    except DataError:
        return False
