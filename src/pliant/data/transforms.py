"""Transforms for the data sets, composed from torchvision.transforms.v2.

All return images as float32 in 0..1. Detectors with torchvision's interface resize images themselves, so the detection
transforms keep the size.
"""

from __future__ import annotations

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from pliant.constants import IGNORE

# The mean colour of ImageNet, which is close to zero after normalisation.
_FILL = (124, 116, 104)

_PER_BOX = ("labels", "difficult", "truncated", "iscrowd", "area")


def detection_train(flip: float = 0.5) -> v2.Compose:
    """Flip horizontally with probability `flip`, and drop the boxes that are not trained on.

    These are difficult boxes, crowds, and boxes smaller than a pixel. Their labels and other fields are dropped too.
    """
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(_probability(flip)),
            DropIgnored(),
            v2.SanitizeBoundingBoxes(labels_getter=_per_box_fields),
            _to_float(),
        ]
    )


def detection_eval() -> v2.Compose:
    """Convert the image only, and keep all boxes."""
    return v2.Compose([_to_float()])


def segmentation_train(
    short_side: int, max_side: int, flip: float = 0.5, crop: int | tuple[int, int] | None = None
) -> v2.Compose:
    """Resize, flip horizontally with probability `flip`, and crop at random.

    Args:
        short_side: target length of the short side, in pixels.
        max_side: upper limit of the long side, in pixels; takes precedence over `short_side`.
        flip: probability of a flip.
        crop: (height, width) in pixels, or one number for both. Larger crops than images are filled with ImageNet's
            mean colour, and with 255 (ignored) in the mask. None: no crop, so images keep different sizes.

    Returns:
        A transform of `(image, mask)`. The mask is int64 and never interpolated.
    """
    steps: list[torch.nn.Module] = [
        _resize(short_side, max_side),
        v2.RandomHorizontalFlip(_probability(flip)),
    ]
    if crop is not None:
        size = (crop, crop) if isinstance(crop, int) else tuple(crop)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"crop must be one or two positive numbers of pixels, got {crop!r}")
        fill = {tv_tensors.Image: _FILL, tv_tensors.Mask: IGNORE}
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    return v2.Compose([*steps, _to_float()])


def segmentation_eval(short_side: int, max_side: int) -> v2.Compose:
    """Resize image and mask like `segmentation_train`, without randomness."""
    return v2.Compose([_resize(short_side, max_side), _to_float()])


def classification_train(crop: int, flip: float = 0.5) -> v2.Compose:
    """Resize a random part of the image to a square, and flip it horizontally with probability `flip`.

    The part has 8 to 100 % of the area and an aspect ratio of 3:4 to 4:3.

    Args:
        crop: side of the square, in pixels.
        flip: probability of a flip.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(crop, antialias=True),
            v2.RandomHorizontalFlip(_probability(flip)),
            _to_float(),
            v2.ToPureTensor(),
        ]
    )


def classification_eval(short_side: int, max_side: int, crop: int) -> v2.Compose:
    """Resize like `segmentation_train`, and crop the central square of `crop` pixels."""
    return v2.Compose([_resize(short_side, max_side), v2.CenterCrop(crop), _to_float(), v2.ToPureTensor()])


class DropIgnored(v2.Transform):
    """Drop the boxes marked difficult or as a crowd, with their other fields."""

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the image unchanged, and a new target."""
        keep = ~(target["difficult"] | target["iscrowd"])  # [L]
        kept = {key: target[key][keep] for key in _PER_BOX}
        boxes = tv_tensors.wrap(target["boxes"][keep], like=target["boxes"])
        return image, {**target, **kept, "boxes": boxes}


def _per_box_fields(sample: tuple[Any, dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    return tuple(sample[1][key] for key in _PER_BOX)


def _probability(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"flip must be a probability from 0 to 1, got {value!r}")
    return value


def _resize(short_side: int, max_side: int) -> v2.Resize:
    if not 1 <= short_side <= max_side:
        raise ValueError(f"1 <= short_side <= max_side is needed, got {short_side} and {max_side}")
    if short_side == max_side:
        return v2.Resize(size=None, max_size=max_side, antialias=True)
    return v2.Resize(size=[short_side], max_size=max_side, antialias=True)


def _to_float() -> v2.Transform:
    dtypes = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.ToDtype(dtypes, scale=True)
