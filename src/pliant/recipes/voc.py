"""The paper's training on PASCAL VOC; any folder of VOC's layout will do.

The schedule is the paper's: 8 images a step, a learning rate of 1e-3 for two thirds of 30,000 steps and 1e-4
for the rest.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.base import DetectionRecipe, SegmentationRecipe


def faster_rcnn() -> DetectionRecipe:
    """Faster R-CNN on VOC 2007 and 2012 trainval, judged on 2007 test."""
    return DetectionRecipe(
        max_steps=30_000,
        train_split="2007_trainval+2012_trainval",
        test_split="2007_test",
    )


def faster_rcnn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable RoI pooling."""
    return replace(faster_rcnn(), deform_layers=3, deform_roi=True)


def deeplab() -> SegmentationRecipe:
    """DeepLab on VOC 2012, judged on its validation split.

    The paper trains on the split enlarged by SBD's annotations; a folder that holds them gives their list
    with ``--set train_split=...``.
    """
    return SegmentationRecipe(
        max_steps=30_000,
        train_split="2012_train",
        test_split="2012_val",
    )


def deeplab_deform() -> SegmentationRecipe:
    """Three deformable convolutions in the last stage."""
    return replace(deeplab(), deform_layers=3)
