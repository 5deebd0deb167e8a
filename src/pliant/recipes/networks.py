"""The network a recipe asks for."""

from __future__ import annotations

from typing import Any

from torch import nn

from pliant import models
from pliant.recipes.base import DetectionRecipe, Recipe


def build_model(recipe: Recipe, classes: tuple[str, ...], *, pretrained: bool = True) -> nn.Module:
    """Build the network of a recipe.

    Args:
        recipe: Of any kind.
        classes: The names of the classes: foreground for detection, the background's first for segmentation.
        pretrained: Whether the backbone starts from the recipe's weights; not needed if others follow.

    Raises:
        ValueError: If the backbone is unknown or cannot be built so.
        FileNotFoundError: If the weights are a file that is not there.
    """
    body: dict[str, Any] = {
        "backbone": recipe.backbone,
        "weights": recipe.weights if pretrained else None,
        "frozen": recipe.frozen,
        "deform_layers": recipe.deform_layers,
        "dilation": recipe.dilation,
        "padded_pool": recipe.padded_pool,
        "border": recipe.border,
        "offset_groups": recipe.offset_groups,
        "modulated": recipe.modulated,
    }
    if not isinstance(recipe, DetectionRecipe):
        return models.deeplab(len(classes), **body)
    return models.faster_rcnn(
        len(classes) + 1,
        **body,
        deform_roi=recipe.deform_roi,
        sampling=recipe.sampling,
        min_size=recipe.short_side,
        max_size=recipe.max_side,
        anchor_scales=recipe.anchor_scales,
        score_thresh=recipe.score_threshold,
        nms_thresh=recipe.nms_threshold,
        detections_per_image=recipe.max_detections,
    )
