"""Where the authors' code departs from the paper, in all of their recipes.

They add up gradients over images where we average them, so their learning rate of 5e-4 is one for each image, and
their weight decay of 5e-4 is shared by the images of a step. They warm up for 1000 steps at a tenth of the rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from pliant.recipes.base import DetectionRecipe, Recipe, SegmentationRecipe

R = TypeVar("R", bound=Recipe)


def as_authors_detect(
    recipe: DetectionRecipe, *, images: int, epochs: float, decay_epoch: float, batch_size: int
) -> DetectionRecipe:
    """Their schedule, their rules at the border and in pooling, and batches of one orientation.

    Args:
        recipe: The paper's.
        images: Of an epoch, mirrored ones counted.
        epochs: Of the training.
        decay_epoch: When the learning rate falls to a tenth.
        batch_size: Images a step, theirs one for each GPU.
    """
    recipe = _schedule(recipe, images, epochs, decay_epoch, batch_size)
    return replace(recipe, sampling="authors")


def as_authors_segment(
    recipe: SegmentationRecipe, *, images: int, epochs: float, decay_epoch: float, batch_size: int
) -> SegmentationRecipe:
    """Their schedule and their rules at the border; biases learn twice as fast. See `as_authors_detect`."""
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
