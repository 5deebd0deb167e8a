"""The paper's training on COCO, with the splits of 2017; any folder of COCO's layout will do.

The schedule is the paper's: 8 images a step, a learning rate of 1e-3 for two thirds of 240,000 steps and 1e-4
for the rest. The split ``train2017`` is the paper's train2014 and val2014 without the 5,000 images of
``val2017``.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.base import DetectionRecipe


def faster_rcnn() -> DetectionRecipe:
    """Faster R-CNN; anchors start a scale lower than for VOC."""
    return DetectionRecipe(
        max_steps=240_000,
        anchor_scales=(4, 8, 16, 32),
        max_detections=100,
        layout="coco",
        train_split="train2017",
        test_split="val2017",
    )


def faster_rcnn_deform() -> DetectionRecipe:
    """Three deformable convolutions in the last stage, and deformable RoI pooling."""
    return replace(faster_rcnn(), deform_layers=3, deform_roi=True)
