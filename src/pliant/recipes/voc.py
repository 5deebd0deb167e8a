"""Training on PASCAL VOC, and on any folder of its layout: the paper's schedule, and the authors' (`..._authors`).

The paper uses 8 images in a step, with a learning rate of 1e-3 for two thirds of the steps and 1e-4 for the rest.
`docs/recipes.md` lists every value with its source.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.authors_schedule import as_authors_detect, as_authors_segment
from pliant.recipes.base import DetectionRecipe, SegmentationRecipe


def faster_rcnn() -> DetectionRecipe:
    """Faster R-CNN on VOC 2007 and 2012 trainval, evaluated on 2007 test."""
    return DetectionRecipe(
        aspect_grouping=True,
        max_steps=30_000,
        train_split="2007_trainval+2012_trainval",
        test_split="2007_test",
    )


def faster_rcnn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable RoI pooling."""
    return replace(faster_rcnn(), deform_layers=3, deform_roi=True)


def faster_rcnn_authors() -> DetectionRecipe:
    """The authors' schedule: 7 epochs at 4 images a step."""
    return as_authors_detect(faster_rcnn(), images=33_102, epochs=7, decay_epoch=4.83, batch_size=4)


def faster_rcnn_deform_authors() -> DetectionRecipe:
    """The authors' schedule and deformation, with four groups of offsets."""
    return replace(faster_rcnn_authors(), deform_layers=3, deform_roi=True, offset_groups=4)


def rfcn() -> DetectionRecipe:
    """R-FCN on VOC 2007 and 2012 trainval, evaluated on 2007 test."""
    return replace(faster_rcnn(), network="rfcn")


def rfcn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable position-sensitive RoI pooling."""
    return replace(rfcn(), deform_layers=3, deform_roi=True)


def rfcn_authors() -> DetectionRecipe:
    """The authors' schedule: 7 epochs of 4 images in a step; the new 1x1 convolution learns three times as fast."""
    return replace(faster_rcnn_authors(), network="rfcn", reduce_lr_mult=3.0)


def rfcn_deform_authors() -> DetectionRecipe:
    """The authors' schedule and deformation, with four groups of offsets."""
    return replace(rfcn_authors(), deform_layers=3, deform_roi=True, offset_groups=4)


def class_aware_rpn() -> DetectionRecipe:
    """Class-aware RPN on VOC 2007 and 2012 trainval, evaluated on 2007 test. The authors did not release one."""
    return replace(faster_rcnn(), network="class_aware_rpn")


def class_aware_rpn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage."""
    return replace(class_aware_rpn(), deform_layers=3)


def deeplab() -> SegmentationRecipe:
    """DeepLab on VOC 2012 with SBD's annotations, evaluated on VOC's validation split."""
    return SegmentationRecipe(
        max_steps=30_000,
        train_split="2012_train+sbd",
        test_split="2012_val",
    )


def deeplab_deform() -> SegmentationRecipe:
    """Three deformable convolutions in the last stage."""
    return replace(deeplab(), deform_layers=3)


def deeplab_authors() -> SegmentationRecipe:
    """The authors' schedule: 12 epochs at 4 images a step, without a warm-up."""
    recipe = as_authors_segment(deeplab(), images=21_164, epochs=12, decay_epoch=8, batch_size=4)
    return replace(recipe, warmup_steps=0)


def deeplab_deform_authors() -> SegmentationRecipe:
    """The authors' schedule and deformation, whose offsets are predicted without dilation."""
    return replace(deeplab_authors(), deform_layers=3, offset_dilation=1)
