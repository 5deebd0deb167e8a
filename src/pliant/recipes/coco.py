"""Training on COCO, and on any folder of its layout: the paper's schedule, and the authors' (`..._authors`).

The paper uses 8 images in a step, with a learning rate of 1e-3 for two thirds of 240,000 steps and 1e-4 for the rest.
Its splits are those of 2014 and 2015. `docs/recipes.md` lists every value with its source.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.authors_schedule import as_authors_detect
from pliant.recipes.base import DetectionRecipe

# Images of train2014 and val2014 that have a box, and their mirrored twins.
_IMAGES = 244_436


def faster_rcnn() -> DetectionRecipe:
    """Faster R-CNN; anchors start a scale lower than for VOC."""
    return DetectionRecipe(
        max_steps=240_000,
        anchor_scales=(4, 8, 16, 32),
        max_detections=100,
        aspect_grouping=True,
        train_split="train2014+val2014",
        test_split="test-dev2015",
    )


def faster_rcnn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable RoI pooling."""
    return replace(faster_rcnn(), deform_layers=3, deform_roi=True)


def faster_rcnn_authors() -> DetectionRecipe:
    """The authors' schedule: 8 epochs at 4 images a step."""
    return as_authors_detect(faster_rcnn(), images=_IMAGES, epochs=8, decay_epoch=5.333, batch_size=4)


def faster_rcnn_deform_authors() -> DetectionRecipe:
    """The authors' schedule and deformation, with four groups of offsets."""
    return replace(faster_rcnn_authors(), deform_layers=3, deform_roi=True, offset_groups=4)


def rfcn() -> DetectionRecipe:
    """R-FCN; anchors start a scale lower than for VOC."""
    return replace(faster_rcnn(), network="rfcn")


def rfcn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable position-sensitive RoI pooling."""
    return replace(rfcn(), deform_layers=3, deform_roi=True)


def rfcn_authors() -> DetectionRecipe:
    """The authors' schedule: 8 epochs of 8 images in a step; the new 1x1 convolution learns three times as fast."""
    recipe = as_authors_detect(rfcn(), images=_IMAGES, epochs=8, decay_epoch=5.333, batch_size=8)
    return replace(recipe, reduce_lr_mult=3.0)


def rfcn_deform_authors() -> DetectionRecipe:
    """The authors' schedule and deformation, with four groups of offsets."""
    return replace(rfcn_authors(), deform_layers=3, deform_roi=True, offset_groups=4)


def rfcn_aligned_inception_resnet() -> DetectionRecipe:
    """R-FCN on Aligned-Inception-ResNet."""
    return replace(rfcn(), backbone="aligned_inception_resnet")


def rfcn_deform_aligned_inception_resnet() -> DetectionRecipe:
    """All nine 3x3 convolutions of the last stage deformable, and deformable position-sensitive RoI pooling."""
    return replace(rfcn_aligned_inception_resnet(), deform_layers=9, deform_roi=True)


def class_aware_rpn() -> DetectionRecipe:
    """Class-aware RPN; anchors start a scale lower than for VOC. The authors did not release one."""
    return replace(faster_rcnn(), network="class_aware_rpn")


def class_aware_rpn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage."""
    return replace(class_aware_rpn(), deform_layers=3)


def fpn_faster_rcnn() -> DetectionRecipe:
    """Faster R-CNN on a feature pyramid of ResNet-50, with today's usual schedule of 12 epochs at 16 images a step."""
    return DetectionRecipe(
        network="fpn_faster_rcnn",
        backbone="timm/resnet50",
        weights="pretrained",
        train_split="train2017",
        test_split="val2017",
        short_side=800,
        max_side=1333,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=100,
        lr=0.02,
        lr_batch=16,
        batch_size=16,
        weight_decay=1e-4,
        max_steps=90_000,
        decay_at=(8 / 12, 11 / 12),
        warmup_steps=500,
        warmup_factor=0.1,
    )


def fpn_faster_rcnn_deform() -> DetectionRecipe:
    """All 3x3 convolutions of conv3 to conv5 deformable."""
    return replace(fpn_faster_rcnn(), deform_stages=3)


def fpn_faster_rcnn_modulated() -> DetectionRecipe:
    """All 3x3 convolutions of conv3 to conv5 deformable and modulated (Zhu et al. 2019)."""
    return replace(fpn_faster_rcnn_deform(), modulated=True)
