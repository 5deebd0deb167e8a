"""`pliant predict`: run trained weights on images, and write pictures and files of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pliant.console import Progress
from pliant.data.image_set import some
from pliant.data.images import UnreadableFileError, find_images, read_image
from pliant.engine.test_time_augmentation import Procedure
from pliant.outputs import Outputs, unique_names, without_own
from pliant.pictures.fonts import undrawable
from pliant.runs.exported import open_trained
from pliant.runs.files import write_json

PREDICTIONS = "predictions.json"


@dataclass
class Prediction:
    """What `predict` did.

    Attributes:
        pictures: The picture that was drawn for each image.
        failed: The reason for each image that could not be read.
        records: The content of ``predictions.json``; see `predict`.
    """

    pictures: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


def predict(
    source: Path,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float = 0.5,
    device: str | None = None,
    procedure: Procedure | None = None,
) -> Prediction:
    """Run a trained network on images, and write its results.

    For detection, each picture shows the boxes above the threshold, and ``predictions.json`` holds all boxes in COCO's
    results format with ``file_name`` and ``category`` added; ``category_id`` is that of the training's data if it has
    such ids, otherwise the label, which counts the classes from 1. For segmentation, ``NAME.mask.png`` is a palette PNG
    of class ids at the size of the image, and the picture shows the classes over the image, with a legend. For
    classification, each picture shows the best three classes, and ``predictions.json`` holds the best five. Pictures of
    small images are enlarged, so that their labels can be read.

    Args:
        source: A run folder, a file of weights that `train` wrote, or a file that `export` wrote.
        images: Image files, or folders that are searched for image files with all their subfolders.
        out: The folder to write to, which is created if it is missing. Only files that Pliant wrote there are replaced:
            see `pliant.outputs`.
        threshold: Lower limit of the score of the boxes that are drawn.
        device: The device, such as ``"cuda"``; None for a GPU if there is one.
        procedure: Test-time augmentation and merging; None for a single pass.

    Returns:
        What was written. An image that cannot be read is listed there and left out.

    Raises:
        FileNotFoundError: If the weights or an image do not exist.
        ValueError: If the weights cannot be used, or a file that Pliant did not write is in the way.
    """
    found_images = find_images(images, leave_out=out)
    files, own = without_own(found_images.images, images)
    trained = open_trained(source)
    task, recipe = trained.task, trained.recipe
    chosen = trained.device(device)
    model = trained.model()
    if procedure is not None and procedure != Procedure():
        model = task.augmented(model, procedure.at(recipe.short_side))
    model = model.to(chosen)
    names = unique_names(files, task.endings)
    planned = [f"{name}{ending}" for name in names.values() for ending in task.endings]
    outputs = Outputs(out, [*planned, PREDICTIONS] if task.recorded else planned, inputs=files)
    done = Prediction()
    with Progress() as progress:
        for sentence in (found_images.passed_over(), own, _without_font(trained.classes)):
            if sentence is not None:
                progress.console.print(sentence, style="yellow")
        for image_id, path in enumerate(progress.track(files, "predicting")):
            try:
                image = read_image(path)  # uint8 [3, H, W]
            except UnreadableFileError as error:
                done.failed[path] = str(error)
                progress.console.print(f"{path} cannot be read and is left out: {error}", style="red")
                continue
            found = task.infer(model, image, recipe, chosen)
            records = task.records(found, trained.classes, image_id=image_id, category_ids=trained.category_ids)
            done.records += [{"file_name": str(path), **record} for record in records]
            with outputs.writing(*(f"{names[path]}{ending}" for ending in task.endings)) as places:
                pictures = task.draw(image, found, trained.classes, threshold=threshold)
                for place, picture in zip(places, pictures, strict=True):
                    picture.save(place)
            done.pictures[path] = out / f"{names[path]}{task.endings[0]}"
    if task.recorded:
        with outputs.writing(PREDICTIONS) as (place,):
            write_json(place, done.records)
    return done


def _without_font(classes: Sequence[str]) -> str | None:
    """A sentence about names that the pictures cannot show; None if there are none."""
    names = undrawable(classes)
    if not names:
        return None
    return (
        f"No font of this machine has the characters of {some(names, 3)}: the pictures show the numbers of "
        "these classes. Install a font that has them, such as Noto Sans CJK"
    )
