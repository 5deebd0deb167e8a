"""An image as a trained network takes it, what the network finds there, and which places are worth a look."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors

from pliant.data import transforms
from pliant.recipes.base import DetectionRecipe, Recipe, SegmentationRecipe
from pliant.tasks.inference import detect, palette, segment

_MOST_DETECTIONS = 50
_LEAST_OBJECT = 64  # pixels of a piece of one class in a segmentation
_OPACITY = 50
Place = tuple[float, float]


@dataclass(frozen=True)
class Seen:
    """One image; places and boxes are in pixels of `image`.

    Attributes:
        picture: uint8 `[3, h, w]`, what `image` was made from.
        image: float `[3, H, W]`, as the network takes it.
        places: (name, (y, x)): the background, the smallest and the largest object, as far as there are such.
        boxes, labels, scores: of a detector's best detections.
        overlay: uint8 `[4, h, w]`, a segmenter's classes in colours, the background left clear.
    """

    picture: Tensor
    image: Tensor
    places: list[tuple[str, Place]]
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    overlay: Tensor | None = None


def see(
    model: nn.Module,
    recipe: Recipe,
    classes: tuple[str, ...],
    picture: tv_tensors.Image,
    *,
    threshold: float,
    device: str,
) -> Seen:
    """Let a network of any kind of recipe look at an image.

    Args:
        model: In evaluation mode, on the device.
        recipe: Which it was trained with.
        classes: Likewise.
        picture: uint8 `[3, h, w]`.
        threshold: The score from which detections count.
        device: Such as ``"cpu"``.
    """
    if isinstance(recipe, DetectionRecipe):
        return _detections(model, classes, picture, threshold, device)
    if isinstance(recipe, SegmentationRecipe):
        return _segmentation(model, recipe, classes, picture, device)
    image = transforms.classification_eval(recipe.short_side, recipe.max_side, recipe.crop)(picture)  # type: ignore[attr-defined]
    return Seen((image * 255).byte(), image.to(device), [("middle", (image.shape[1] / 2, image.shape[2] / 2))])


def _detections(
    model: nn.Module, classes: tuple[str, ...], picture: tv_tensors.Image, threshold: float, device: str
) -> Seen:
    pixels = picture.as_subclass(Tensor)
    found = detect(model, pixels, device)
    keep = found["scores"] >= threshold
    boxes, labels, scores = (found[key][keep][:_MOST_DETECTIONS] for key in ("boxes", "labels", "scores"))
    covered = np.zeros(pixels.shape[1:], dtype=bool)
    for x0, y0, x1, y1 in boxes.round().int().tolist():
        covered[y0:y1, x0:x1] = True
    objects = [((x1 - x0) * (y1 - y0), ((y0 + y1) / 2, (x0 + x1) / 2)) for x0, y0, x1, y1 in boxes.tolist()]
    names = [classes[label - 1] for label in labels.tolist()]
    return Seen(pixels, pixels.to(device) / 255, _places(objects, covered), boxes, names, scores.tolist())


def _segmentation(
    model: nn.Module, recipe: SegmentationRecipe, classes: tuple[str, ...], picture: tv_tensors.Image, device: str
) -> Seen:
    image = transforms.segmentation_eval(recipe.short_side, recipe.max_side)(picture).as_subclass(Tensor)
    ids = segment(model, picture, recipe, device)
    colours = torch.tensor(palette(len(classes)), dtype=torch.uint8)[ids.long()].permute(2, 0, 1)
    near = ids[None].float()
    outline = functional.max_pool2d(near, 3, 1, 1) != -functional.max_pool2d(-near, 3, 1, 1)  # [1, h, w]
    overlay = torch.cat((colours, torch.where(outline, 255, _OPACITY).byte() * (ids > 0)))
    scaled = functional.interpolate(ids[None, None].float(), image.shape[-2:], mode="nearest-exact")[0, 0].numpy()
    places = _places(_pieces(scaled), scaled > 0)
    return Seen(picture.as_subclass(Tensor), image.to(device), places, overlay=overlay)


def _pieces(ids: np.ndarray) -> list[tuple[float, Place]]:
    """The area and the innermost place of each connected piece of a class."""
    found = []
    for label in np.unique(ids[ids > 0]):
        pieces, number = ndimage.label(ids == label)
        for piece in range(1, number + 1):
            mask = pieces == piece
            if mask.sum() >= _LEAST_OBJECT:
                found.append((float(mask.sum()), _innermost(mask)))
    return found


def _places(objects: list[tuple[float, Place]], covered: np.ndarray) -> list[tuple[str, Place]]:
    named = []
    if not covered.all():
        named.append(("background", _innermost(~covered)))
    if len(objects) > 1:
        named.append(("small object", min(objects)[1]))
    if objects:
        named.append(("large object", max(objects)[1]))
    return named


def _innermost(mask: np.ndarray) -> Place:
    """The centre (y, x) of the pixel that is farthest from all that is not in the mask, or in the image."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), mask.shape)
    return float(row) + 0.5, float(column) + 0.5
