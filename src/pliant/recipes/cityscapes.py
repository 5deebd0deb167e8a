"""Training on Cityscapes: the paper's schedule, and the authors' (`..._authors`).

`docs/recipes.md` lists every value with its source.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.authors_schedule import as_authors_segment
from pliant.recipes.base import SegmentationRecipe


def deeplab() -> SegmentationRecipe:
    """DeepLab on the 2975 finely labelled images without cropping, evaluated on the validation split."""
    return SegmentationRecipe(
        train_split="train",
        test_split="val",
        short_side=1024,
        max_side=2048,
        max_steps=45_000,
    )


def deeplab_deform() -> SegmentationRecipe:
    """Three deformable convolutions in the last stage."""
    return replace(deeplab(), deform_layers=3)


def deeplab_authors() -> SegmentationRecipe:
    """The authors' schedule: 53 epochs of crops, with 4 images in a step."""
    recipe = as_authors_segment(deeplab(), images=5950, epochs=53, decay_epoch=40.336, batch_size=4)
    return replace(recipe, crop=(768, 1024))


def deeplab_deform_authors() -> SegmentationRecipe:
    """The authors' schedule and deformation, whose offsets are predicted without dilation."""
    return replace(deeplab_authors(), deform_layers=3, offset_dilation=1)
