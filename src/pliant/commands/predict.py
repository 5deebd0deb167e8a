"""Use trained weights on images: pictures to look at, and files to work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from pliant.console import Progress
from pliant.data import transforms
from pliant.data.images import UnreadableFileError, find_images, read_image
from pliant.engine.test_time_augmentation import Procedure
from pliant.outputs import Outputs, unique_names, wrote
from pliant.recipes.base import ClassificationRecipe, SegmentationRecipe
from pliant.runs.exported import open_trained
from pliant.runs.files import write_json
from pliant.runs.trained import Trained, under_procedure
from pliant.tasks.inference import detect, palette, segment
from pliant.tasks.result_files import coco_results

PREDICTIONS = "predictions.json"


@dataclass
class Prediction:
    """What `predict` did.

    Attributes:
        pictures: The files to look at, by image.
        failed: Images that could not be used, and why.
        detections: COCO's results; empty but for detection.
        labels: For each image its ``file_name`` and ``top5``, at most five of ``category`` and ``score``, the best
            first; empty but for classification.
    """

    pictures: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    detections: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)


def predict(
    source: Path,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float = 0.5,
    device: str | None = None,
    procedure: Procedure | None = None,
) -> Prediction:
    """Predict for images.

    For detection each picture shows the boxes above the threshold, and ``predictions.json`` holds all of them
    in COCO's results form with ``file_name`` and ``category`` added; ``category_id`` is that of the training's data
    where it has such ids, else the label, from 1, in the order of the classes. For segmentation there is a palette PNG
    of class ids, ``NAME.mask.png``, at the size of the image, and a picture of it over the image. For
    classification each picture shows the best class, and ``predictions.json`` holds the best five.

    Args:
        source: A run folder, a file of weights that `train` wrote, or one that `export` did.
        images: Files, or folders whose image files are taken, with those of all folders below.
        out: The folder to write to; it is made if need be. Pictures that Pliant wrote there are replaced, and no other
            file is: see `pliant.outputs`.
        threshold: The score from which boxes are drawn.
        device: Such as ``"cuda"``; a GPU if there is one when None.
        procedure: What is done at test time beyond one pass.

    Returns:
        What was written. An image that cannot be read is reported there and the others go on.

    Raises:
        FileNotFoundError: If the weights or an image are not there.
        ValueError: If the weights cannot be used, or a file that is not Pliant's is where a picture would go.
    """
    found_images = find_images(images, leave_out=out)
    files, own = without_own(found_images.images, images)
    trained = open_trained(source)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = under_procedure(trained.model(), trained.recipe, procedure).to(chosen)
    segmentation = isinstance(trained.recipe, SegmentationRecipe)
    endings = (".png", ".mask.png") if segmentation else (".png",)
    names = unique_names(files, endings)
    planned = [f"{name}{ending}" for name in names.values() for ending in endings]
    outputs = Outputs(out, planned if segmentation else [*planned, PREDICTIONS], inputs=files)
    done = Prediction()
    with Progress() as progress:
        for sentence in (found_images.passed_over(), own):
            if sentence is not None:
                progress.console.print(sentence, style="yellow")
        for image_id, path in enumerate(progress.track(files, "predicting")):
            try:
                image = read_image(path)  # uint8 [3, H, W]
            except UnreadableFileError as error:
                done.failed[path] = str(error)
                progress.console.print(f"{path} cannot be read and is left out: {error}", style="red")
                continue
            pictures = _use(trained, model, image, image_id, path, chosen, threshold, done)
            with outputs.writing(*(f"{names[path]}{ending}" for ending in endings)) as places:
                for place, picture in zip(places, pictures, strict=True):
                    picture.save(place)
            done.pictures[path] = out / f"{names[path]}.png"
    if not segmentation:
        with outputs.writing(PREDICTIONS) as (place,):
            write_json(place, done.detections + done.labels)
    return done


def _use(
    trained: Trained,
    model: nn.Module,
    image: Tensor,
    image_id: int,
    path: Path,
    device: str,
    threshold: float,
    done: Prediction,
) -> list[Image.Image]:
    """Run the network on an image, add what is found to `done`, and return the pictures of it."""
    classes = trained.classes
    if isinstance(trained.recipe, SegmentationRecipe):
        ids = segment(model, image, trained.recipe, device)
        return [to_pil_image(_draw_mask(image, ids, len(classes))), _mask(ids, len(classes))]
    if isinstance(trained.recipe, ClassificationRecipe):
        best = _best(_classify(model, image, trained.recipe, device), classes)
        done.labels.append({"file_name": str(path), "top5": best})
        return [to_pil_image(_draw_name(image, f"{best[0]['category']} {best[0]['score']:.2f}"))]
    found = detect(model, image, device)
    done.detections += _named_results(found, image_id, path, trained)
    return [to_pil_image(_draw_boxes(image, found, classes, threshold))]


def without_own(files: Sequence[Path], given: Sequence[Path]) -> tuple[list[Path], str | None]:
    """Leave out the pictures that Pliant itself drew, but for those that are given by their own paths.

    Returns:
        The rest, and a sentence that says what was left out; None if nothing was.

    Raises:
        FileNotFoundError: If nothing else is there.
    """
    own = {path for path in files if path not in given and wrote(path)}
    if not own:
        return list(files), None
    said = f"{len(own)} pictures that Pliant drew are passed over, such as {min(own)}"
    if len(own) == len(files):
        raise FileNotFoundError(f"there are no other images: {said}")
    return [path for path in files if path not in own], said


@torch.inference_mode()
def _classify(model: nn.Module, image: Tensor, recipe: ClassificationRecipe, device: str) -> Tensor:
    """Probabilities [C]."""
    cut = transforms.classification_eval(recipe.short_side, recipe.max_side, recipe.crop)
    return model(cut(image)[None].to(device))[0].softmax(dim=0).cpu()


def _best(scores: Tensor, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    values, labels = scores.topk(min(5, len(classes)))
    return [
        {"category": classes[label], "score": value}
        for value, label in zip(values.tolist(), labels.tolist(), strict=True)
    ]


def _named_results(found: dict[str, Tensor], image_id: int, path: Path, trained: Trained) -> list[dict[str, Any]]:
    """COCO's results with names."""
    ids = trained.category_ids or range(1, len(trained.classes) + 1)
    names = dict(zip(ids, trained.classes, strict=True))
    results = coco_results(found, image_id, dict(enumerate(ids, start=1)))
    return [{**item, "file_name": str(path), "category": names[item["category_id"]]} for item in results]


def _draw_boxes(image: Tensor, found: dict[str, Tensor], classes: tuple[str, ...], threshold: float) -> Tensor:
    keep = found["scores"] >= threshold
    # Small pictures get thin lines.
    width = max(1, round(min(image.shape[-2:]) / 200))
    if not keep.any():
        return image
    labels = found["labels"][keep].tolist()
    scores = found["scores"][keep].tolist()
    colours = palette(len(classes) + 1)
    return draw_bounding_boxes(
        image.as_subclass(Tensor),
        found["boxes"][keep],
        labels=[f"{classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        colors=[colours[label] for label in labels],
        width=width,
    )


def _draw_name(image: Tensor, name: str) -> Tensor:
    height, width = image.shape[-2:]
    frame = torch.tensor([[0, 0, width - 1, height - 1]])
    return draw_bounding_boxes(image.as_subclass(Tensor), frame, labels=[name], colors=[palette(2)[1]])


def _draw_mask(image: Tensor, ids: Tensor, classes: int) -> Tensor:
    colours = palette(classes)
    foreground = torch.stack([ids == label for label in range(1, classes)])  # bool [C - 1, H, W]
    return draw_segmentation_masks(image.as_subclass(Tensor), foreground, alpha=0.55, colors=colours[1:])


def _mask(ids: Tensor, classes: int) -> Image.Image:
    picture = Image.fromarray(np.asarray(ids))
    picture.putpalette([value for colour in palette(classes) for value in colour])
    return picture
