"""Whether a recipe can be trained on a data folder: what is there, what is missing, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from pathlib import Path

from pliant.console import Console, Table, styled
from pliant.data import DataError, DetectionSet, ImageSet
from pliant.data.image_set import some
from pliant.data.images import UnreadableFileError, read_image
from pliant.recipes.base import ClassificationRecipe, Recipe, SegmentationRecipe, find_recipe, override
from pliant.tasks.datasets import Splits, choose_splits, open_split, require_content
from pliant.tasks.startable import require_startable

_MOST_NAMES = 10
_VOC = """\
VOCdevkit/VOC2007/ and VOC2012/, each with
  JPEGImages/ID.jpg
  ImageSets/Main/SPLIT.txt          Annotations/ID.xml          (detection)
  ImageSets/Segmentation/SPLIT.txt  SegmentationClass/ID.png    (segmentation)
One such folder of your own will do. From host.robots.ox.ac.uk/pascal/VOC."""
_SBD = """\
SBD lies beside VOCdevkit/ or in the data folder: benchmark_RELEASE/dataset/ (or sbd/) with img/ID.jpg, cls/ID.mat,
train.txt, val.txt. From the Berkeley vision group's page of "Semantic Contours from Inverse Detectors"."""
_COCO = """\
train2014/, val2014/, test2015/ (or of 2017) with images, and
  annotations/instances_SPLIT.json
  annotations/image_info_test-dev2015.json                      (to send results of)
From cocodataset.org."""
_CITYSCAPES = """\
leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_labelIds.png
for the splits train and val. From cityscapes-dataset.com."""
_FOLDERS = """\
train/CLASS/NAME.jpg
val/CLASS/NAME.jpg
From image-net.org, or any images that you sort so."""


def check(name: str, data: Path, *, assignments: Sequence[str] = (), deep: bool = False) -> bool:
    """Open what a recipe trains and judges on, and print what is there and what is not, weights included.

    Args:
        name: Of the recipe.
        data: The folder of the data.
        assignments: Changes of the recipe, ``field=value``.
        deep: Whether every image is decoded, too.

    Returns:
        Whether training can start.

    Raises:
        ValueError: If there is no such recipe or field, or a value is not of its type.
    """
    recipe = override(find_recipe(name), assignments)
    console = Console()
    try:
        splits = choose_splits(recipe, data, {text.partition("=")[0].strip() for text in assignments})
    except DataError as error:
        _say_error(console, "cannot train:", error)
        _say_layout(console, recipe)
        return False
    _say_splits(console, recipe, splits)
    can_train, classes = True, recipe.classes
    for purpose, split in (("train", splits.train), ("validate", splits.validation), ("judge", splits.test)):
        if split is None:
            continue
        try:
            dataset = open_split(recipe, data, split, training=purpose == "train", classes=classes)
            if purpose == "train":
                require_content(dataset)
        except DataError as error:
            _say_error(console, f"{purpose}: {split} cannot be used:", error)
            can_train = can_train and purpose != "train"
            continue
        classes = dataset.classes
        if deep and not _decode(dataset):
            console.print(f"{purpose}: no image of {split} can be decoded", style="red")
            can_train = can_train and purpose != "train"
        _say_content(console, purpose, split, dataset)
    if not can_train:
        _say_layout(console, recipe)
    startable = _say_whether_startable(console, recipe)
    if not can_train:
        console.print("Training cannot start.", style="red")
    elif startable:
        console.print("Training can start.", style="green")
    else:
        console.print("The data can be trained on, once that is set.", style="green")
    return can_train


def _say_whether_startable(console: Console, recipe: Recipe) -> bool:
    """Print what training lacks beside the data, such as weights."""
    try:
        require_startable(recipe)
    except (ValueError, OSError) as error:
        console.print(f"recipe: {error}", style="yellow")
        return False
    return True


def _say_splits(console: Console, recipe: Recipe, splits: Splits) -> None:
    """Print where the data has other splits than the recipe asks for."""
    wanted = {"train": (recipe.train_split, splits.train), "judge": (recipe.test_split, splits.test)}
    for purpose, (asked, found) in wanted.items():
        if asked is not None and asked != found:
            instead = f"{found} is taken" if found else "none is taken"
            console.print(f"{purpose}: the recipe asks for {asked}; {instead}", style="yellow")
            if "sbd" in asked.split("+") and "sbd" not in (found or "").split("+"):
                console.print(*_SBD.splitlines(), sep="\n")


def _say_error(console: Console, what: str, error: DataError) -> None:
    first, *rest = str(error).splitlines()
    console.print(styled(what, "red"), first)
    if rest:
        console.print(*rest, sep="\n")


def _say_layout(console: Console, recipe: Recipe) -> None:
    if isinstance(recipe, ClassificationRecipe):
        text = _FOLDERS
    else:
        text = {"voc": _VOC, "coco": _COCO, "cityscapes": _CITYSCAPES}[recipe.layout]
        if isinstance(recipe, SegmentationRecipe) and "sbd" in (recipe.train_split or ""):
            text = f"{text}\n{_SBD}"
    console.print("", "The layout that is expected:", *text.splitlines(), sep="\n")


def _decode(dataset: ImageSet) -> int:
    """Report the images that cannot be decoded, and return how many can."""
    readable = 0
    for path in dataset.paths:
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
    """What is no problem, and yet not as one may think."""
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
    """How often each class occurs, and what was counted; all boxes, with those that are not trained on."""
    if not isinstance(dataset, DetectionSet):
        return dataset.class_counts(), f"{dataset.unit}s"
    counts = Counter(label for index in range(len(dataset)) for label in dataset.target(index)["labels"].tolist())
    return [counts[label] for label in range(1, len(dataset.classes) + 1)], "boxes"
