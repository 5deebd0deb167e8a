"""Use trained weights on images: pictures to look at, and files to work with."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import to_dtype, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from pliant.console import Console
from pliant.data import transforms
from pliant.data.images import UnreadableFileError, find_images, read_image
from pliant.engine.runs import replacing, write_json
from pliant.engine.test_time import Procedure
from pliant.recipes.base import ClassificationRecipe, SegmentationRecipe
from pliant.recipes.exported import open_trained
from pliant.recipes.result_files import coco_results
from pliant.recipes.trained import under_procedure


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
    in COCO's results form with ``file_name`` and ``category`` added. For segmentation there is a palette PNG
    of class ids, ``NAME.mask.png``, at the size of the image, and a picture of it over the image. For
    classification each picture shows the best class, and ``predictions.json`` holds the best five.

    Args:
        source: A run folder, a file of weights that `train` wrote, or one that `export` did.
        images: Files, or folders whose image files are taken, with those of all folders below.
        out: The folder to write to; it is made if need be, and files of the same names are replaced.
        threshold: The score from which boxes are drawn.
        device: Such as ``"cuda"``; a GPU if there is one when None.
        procedure: What is done at test time beyond one pass.

    Returns:
        What was written. An image that cannot be read is reported there and the others go on.

    Raises:
        FileNotFoundError: If the weights or an image are not there.
        ValueError: If the weights cannot be used.
    """
    found_images = find_images(images, leave_out=out)
    files = found_images.images
    trained = open_trained(source)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = under_procedure(trained.model(), trained.recipe, procedure).to(chosen)
    out.mkdir(parents=True, exist_ok=True)
    done = Prediction()
    console = Console(stderr=True)
    if passed_over := found_images.passed_over():
        console.print(passed_over, style="yellow")
    names = unique_names(files)
    for image_id, path in enumerate(files):
        try:
            image = read_image(path)  # uint8 [3, H, W]
        except UnreadableFileError as error:
            done.failed[path] = str(error)
            console.print(f"{path} cannot be read and is left out: {error}", style="red")
            continue
        if isinstance(trained.recipe, SegmentationRecipe):
            ids = segment(model, image, trained.recipe, chosen)
            _write_mask(out / f"{names[path]}.mask.png", ids, len(trained.classes))
            picture = _draw_mask(image, ids, len(trained.classes))
        elif isinstance(trained.recipe, ClassificationRecipe):
            scores = _classify(model, image, trained.recipe, chosen)
            best = _best(scores, trained.classes)
            done.labels.append({"file_name": str(path), "top5": best})
            picture = _draw_name(image, f"{best[0]['category']} {best[0]['score']:.2f}")
        else:
            found = detect(model, image, chosen)
            done.detections += _named_results(found, image_id, path, trained.classes)
            picture = _draw_boxes(image, found, trained.classes, threshold)
        done.pictures[path] = out / f"{names[path]}.png"
        _write_png(done.pictures[path], to_pil_image(picture))
    if not isinstance(trained.recipe, SegmentationRecipe):
        write_json(out / "predictions.json", done.detections + done.labels)
    return done


@torch.inference_mode()
def detect(model: nn.Module, image: Tensor, device: str) -> dict[str, Tensor]:
    """Boxes, labels and scores of a uint8 image, on the CPU."""
    scaled = to_dtype(image.as_subclass(Tensor), torch.float32, scale=True).to(device)
    return {key: value.cpu() for key, value in model([scaled])[0].items()}


@torch.inference_mode()
def segment(model: nn.Module, image: Tensor, recipe: SegmentationRecipe, device: str) -> Tensor:
    """Class ids, uint8 [H, W], at the size of the image."""
    resize = transforms.segmentation_eval(recipe.short_side, recipe.max_side)
    scaled = resize(image).as_subclass(Tensor).to(device)  # float [3, h, w]
    ids = model(scaled[None])["out"][0].argmax(dim=0)  # [h, w]
    full = functional.interpolate(ids[None, None].float(), size=image.shape[-2:], mode="nearest-exact")
    return full[0, 0].to(torch.uint8).cpu()


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


def _named_results(
    found: dict[str, Tensor], image_id: int, path: Path, classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """COCO's results with names; ``category_id`` is the label, from 1, in the order of the classes."""
    results = coco_results(found, image_id, {label: label for label in range(1, len(classes) + 1)})
    return [{**item, "file_name": str(path), "category": classes[item["category_id"] - 1]} for item in results]


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


def _write_mask(path: Path, ids: Tensor, classes: int) -> None:
    picture = Image.fromarray(np.asarray(ids))
    picture.putpalette([value for colour in palette(classes) for value in colour])
    _write_png(path, picture)


def _write_png(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def palette(number: int) -> list[tuple[int, int, int]]:
    """Black, then hues that differ much from one to the next."""
    golden = 0.61803398875
    hues = [(0.02 + place * golden) % 1.0 for place in range(number - 1)]
    colours = [colorsys.hsv_to_rgb(hue, 0.85, 1.0 if place % 2 else 0.8) for place, hue in enumerate(hues)]
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)]


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for the pictures of each file: its own without the ending, with a number where that is taken."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        names[path] = name
    return names
