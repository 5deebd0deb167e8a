"""The network a recipe asks for, and how fast its parts learn."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from pliant import models
from pliant.recipes.base import ClassificationRecipe, DetectionRecipe, Recipe

PRETRAINED = "pretrained"
RANDOM = "random"


def build_model(recipe: Recipe, classes: tuple[str, ...], *, pretrained: bool = True) -> nn.Module:
    """Build the network of a recipe.

    Args:
        recipe: Of any kind.
        classes: The names of the classes: foreground for detection, the background's first for segmentation, all
            for classification.
        pretrained: Whether the backbone starts from the recipe's weights; not needed if others follow.

    Raises:
        ValueError: If the backbone is unknown or cannot be built so.
        FileNotFoundError: If the weights are a file that is not there.
    """
    weights = recipe.weights if pretrained and recipe.weights != RANDOM else None
    common: dict[str, Any] = {
        "backbone": recipe.backbone,
        "weights": weights,
        "frozen": recipe.fixed_norms,
        "padded_pool": recipe.padded_pool,
        "border": recipe.border,
        "offset_groups": recipe.offset_groups,
        "modulated": recipe.modulated,
    }
    last_layers: dict[str, Any] = {
        **common,
        "deform_layers": recipe.deform_layers,
        "offset_dilation": recipe.offset_dilation,
        "image_mean": recipe.image_mean,
    }
    if isinstance(recipe, ClassificationRecipe):
        return models.classifier(len(classes), **last_layers)
    stride_16: dict[str, Any] = {**last_layers, "dilation": recipe.dilation}
    if not isinstance(recipe, DetectionRecipe):
        return models.deeplab(len(classes), **stride_16, framing=recipe.framing)
    num_classes = len(classes) + 1
    tested: dict[str, Any] = {
        "min_size": recipe.short_side,
        "max_size": recipe.max_side,
        "score_thresh": recipe.score_threshold,
        "nms_thresh": recipe.nms_threshold,
        "detections_per_image": recipe.max_detections,
    }
    if recipe.network == "fpn_faster_rcnn":
        _require_unused(recipe, "deform_layers", "deform_roi", "offset_dilation", "image_mean")
        return models.fpn_faster_rcnn(num_classes, **common, **tested, deform_stages=recipe.deform_stages)
    _require_unused(recipe, "deform_stages")
    anchored: dict[str, Any] = {**stride_16, **tested, "anchor_scales": recipe.anchor_scales}
    if recipe.network == "class_aware_rpn":
        _require_unused(recipe, "deform_roi")
        return models.class_aware_rpn(num_classes, **anchored)
    pooled: dict[str, Any] = {"deform_roi": recipe.deform_roi, "sampling": recipe.sampling, "framing": recipe.framing}
    if recipe.network == "rfcn":
        return models.rfcn(num_classes, **anchored, **pooled, hardest=recipe.hardest, bins=recipe.bins)
    return models.faster_rcnn(num_classes, **anchored, **pooled, background_iou=recipe.background_iou)


def lr_multipliers(recipe: Recipe, model: nn.Module) -> dict[str, float]:
    """The recipe's learning-rate multipliers, by patterns of the parameters of its network.

    Where several fit a parameter, the last one counts: a layer's own goes before that of biases.
    """
    patterns = {"*.bias": recipe.bias_lr_mult, "*.offset_conv.*": recipe.offset_lr_mult}
    if isinstance(recipe, DetectionRecipe):
        patterns |= {"*.offset_fc.*": recipe.roi_offset_lr_mult, "*.reduce.*": recipe.reduce_lr_mult}
    patterns = {pattern: mult for pattern, mult in patterns.items() if mult != 1}
    names = [name for name, _ in model.named_parameters()]
    return {pattern: mult for pattern, mult in patterns.items() if any(fnmatchcase(name, pattern) for name in names)}


def _require_unused(recipe: DetectionRecipe, *fields: str) -> None:
    """A change that the network would not heed is a mistake."""
    given = [name for name in fields if getattr(recipe, name)]
    if given:
        raise ValueError(f"network={recipe.network} has no {', '.join(given)}")
