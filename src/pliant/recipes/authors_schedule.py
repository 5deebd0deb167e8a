"""Where the authors' code departs from the paper, in all of its recipes.

The authors sum gradients over images, while Pliant averages them. Their learning rate of 5e-4 is therefore the rate
for a single image, and their weight decay of 5e-4 is divided by the number of images in a step. They warm
up for 1000 steps at a tenth of the rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from pliant.recipes.base import DetectionRecipe, Recipe, SegmentationRecipe

R = TypeVar("R", bound=Recipe)


def as_authors_detect(
    recipe: DetectionRecipe, *, images: int, epochs: float, decay_epoch: float, batch_size: int
) -> DetectionRecipe:
    """Apply the authors' schedule and their rules at the border and in pooling to a detection recipe.

    Args:
        recipe: The recipe with the paper's schedule.
        images: Number of images in an epoch, including mirrored ones.
        epochs: Number of epochs of the training.
        decay_epoch: Epoch at which the learning rate falls to a tenth.
        batch_size: Number of images in a step; the authors use one for each GPU.
    """
    recipe = _schedule(recipe, images, epochs, decay_epoch, batch_size)
    return replace(recipe, sampling="authors")


def as_authors_segment(
    recipe: SegmentationRecipe, *, images: int, epochs: float, decay_epoch: float, batch_size: int
) -> SegmentationRecipe:
    """Apply the authors' schedule and rules at the border; biases learn twice as fast. See `as_authors_detect`."""
    return replace(_schedule(recipe, images, epochs, decay_epoch, batch_size), bias_lr_mult=2.0)


def _schedule(recipe: R, images: int, epochs: float, decay_epoch: float, batch_size: int) -> R:
    return replace(
        recipe,
        border="authors",
        framing="authors",
        lr=5e-4,
        lr_batch=1,
        batch_size=batch_size,
        weight_decay=5e-4 / batch_size,
        max_steps=round(images / batch_size * epochs),
        decay_at=(decay_epoch / epochs,),
        warmup_steps=1000,
        warmup_factor=0.1,
    )
