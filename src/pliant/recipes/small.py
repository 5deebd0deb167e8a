"""Training on a few hundred images of one's own, in about half an hour on two processor cores.

The schedules of the other recipes are for data sets of thousands of images. These take fewer steps of fewer, smaller
images, with a higher learning rate, a warm-up and clipped gradients, and start from timm's ImageNet weights. Where the
anchors of the detector lie is determined by the boxes of the training images. `docs/recipes.md` lists every value with
its reason.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.base import PRETRAINED, DetectionRecipe, SegmentationRecipe


def faster_rcnn() -> DetectionRecipe:
    """Faster R-CNN on a few hundred images with boxes."""
    return DetectionRecipe(
        backbone="timm/resnet50",
        weights=PRETRAINED,
        max_steps=600,
        lr=4e-3,
        lr_batch=2,
        batch_size=2,
        warmup_steps=40,
        decay_at=(0.75,),
        clip=5.0,
        short_side=288,
        max_side=480,
        background_iou=0.0,
        anchor_scales=None,
        validate_every=200,
        checkpoint_every=100,
    )


def faster_rcnn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable RoI pooling."""
    return replace(faster_rcnn(), deform_layers=3, deform_roi=True)


def deeplab() -> SegmentationRecipe:
    """DeepLab on a few hundred images with masks."""
    return SegmentationRecipe(
        backbone="timm/resnet50",
        weights=PRETRAINED,
        max_steps=400,
        lr=5e-3,
        lr_batch=4,
        batch_size=4,
        warmup_steps=20,
        decay_at=(0.75,),
        clip=5.0,
        short_side=256,
        max_side=512,
        validate_every=100,
        checkpoint_every=100,
    )


def deeplab_deform() -> SegmentationRecipe:
    """Three deformable convolutions in the last stage."""
    return replace(deeplab(), deform_layers=3)
