"""Scaling, padding and normalisation of images and boxes, as in torchvision or as in the authors' code."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import clip_boxes_to_image

FRAMINGS = ("paper", "authors")


def check_framing(framing: str) -> None:
    """Raise ValueError if the framing is unknown."""
    if framing not in FRAMINGS:
        raise ValueError(f"framing must be one of {', '.join(map(repr, FRAMINGS))}, got {framing!r}")


def image_transform(
    framing: str, min_size: int, max_size: int, mean: Sequence[float], std: Sequence[float], size_divisible: int
) -> GeneralizedRCNNTransform:
    """A transform that normalises, scales and batches images, and scales boxes back.

    Args:
        framing: `"paper"` pads images at the right and bottom to a multiple of `size_divisible` pixels; `"authors"`
            does not pad, and scales boxes by their first and last pixels.
        min_size: target length of the short side, in pixels.
        max_size: upper limit of the long side, in pixels; takes precedence over `min_size`.
        mean, std: mean and standard deviation of images in 0..1.
        size_divisible: see `framing`.
    """
    check_framing(framing)
    if framing == "authors":
        return InclusivePixels(min_size, max_size, list(mean), list(std), size_divisible=1)
    return GeneralizedRCNNTransform(min_size, max_size, list(mean), list(std), size_divisible=size_divisible)


class InclusivePixels(GeneralizedRCNNTransform):
    """Scales boxes as the authors do: by their first and last pixels, and in training rounded to pixels.

    Boxes outside this class have continuous edges: `x1` is one more than the last column.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
        size = (round(scale * height), round(scale * width))
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            pixels = resize_boxes(inclusive(target["boxes"]), [height, width], list(size)).round()
            target["boxes"] = clip_boxes_to_image(_edges(pixels), size)
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        for found in result:
            found["boxes"] = inclusive(found["boxes"])
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found in result:
            found["boxes"] = _edges(found["boxes"])
        return result


def inclusive(boxes: Tensor) -> Tensor:
    """Boxes `[..., 4]` with continuous edges as boxes given by their first and last pixels."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def _edges(boxes: Tensor) -> Tensor:
    return boxes + boxes.new_tensor([0, 0, 1, 1])
