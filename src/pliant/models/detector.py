"""What the paper's detectors share: interface, configuration, checks of arguments, initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pliant import ranges
from pliant.backbones import BackboneOptions, backbone
from pliant.models.hub import OnHub
from pliant.models.targets import ChecksTargets


class Detector(ChecksTargets, OnHub):
    """torchvision's detector interface, with the arguments of the building function in `config`.

    In training it maps images, a list of `Tensor[3, H, W]` in 0..1, and targets, a list of dicts with `boxes`
    (x0, y0, x1, y1) and `labels`, to a dict of losses. In evaluation it maps images to a list of dicts with `boxes`,
    `labels` and `scores`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rpn: nn.Module,
        roi_heads: nn.Module,
        transform: GeneralizedRCNNTransform,
        config: dict[str, Any],
    ) -> None:
        super().__init__(backbone, rpn, roi_heads, transform)
        self.config = config


def arguments(given: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of a building function as JSON can hold them, without the file of initial weights.

    Args:
        given: arguments by name, as returned by `locals()`.
        options: arguments for `pliant.backbones.backbone`; missing ones get its defaults.

    Raises:
        ValueError: if a value is out of its range.
    """
    if given["num_classes"] < 2:
        raise ValueError(f"num_classes counts the background and must be at least 2, got {given['num_classes']}")
    check_arguments({**given, **(options or {})})
    values = {name: value for name, value in given.items() if name != "options"}
    if options is not None:
        own = {name: parameter.default for name, parameter in signature(backbone).parameters.items()}
        values = {**{name: own[name] for name in BackboneOptions.__annotations__}, **options, **values}
    config = {name: value for name, value in values.items() if name != "weights"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check the numeric arguments of a building function by name.

    Raises:
        ValueError: if a value is out of its range. The message shows name, range and value.
    """
    ranges.check_values(given, _TYPES)
    if {"min_size", "max_size"} <= given.keys() and given["min_size"] > given["max_size"]:
        raise ValueError(f"min_size must be at most max_size, got {given['min_size']} and {given['max_size']}")


_TYPES: dict[str, Any] = {
    "deform_layers": ranges.Layers,
    "deform_stages": ranges.Stages,
    "dilation": ranges.Dilation,
    "offset_groups": ranges.Groups,
    "offset_dilation": ranges.Dilation,
    "image_mean": ranges.Colour,
    "bins": ranges.Bins,
    "background_iou": ranges.BackgroundIoU,
    "min_size": ranges.Pixels,
    "max_size": ranges.Pixels,
    "anchor_scales": ranges.AnchorScales,
    "score_thresh": ranges.Score,
    "nms_thresh": ranges.Fraction,
    "detections_per_image": ranges.Detections,
}


@torch.no_grad()
def start(module: nn.Module) -> None:
    """Initialise a new layer: weights from N(0, 0.01), biases to zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
