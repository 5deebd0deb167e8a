"""What a network finds in one image, and the colours that it is drawn in."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2.functional import to_dtype

from pliant.data import transforms
from pliant.recipes.base import SegmentationRecipe


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


def palette(number: int) -> list[tuple[int, int, int]]:
    """Black, then hues that differ much from one to the next."""
    golden = 0.61803398875
    hues = [(0.02 + place * golden) % 1.0 for place in range(number - 1)]
    colours = [colorsys.hsv_to_rgb(hue, 0.85, 1.0 if place % 2 else 0.8) for place, hue in enumerate(hues)]
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)]
