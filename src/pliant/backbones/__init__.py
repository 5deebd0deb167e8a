"""Backbones at stride 16: the paper's ResNets, its Aligned-Inception-ResNet, and timm's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from pliant import surgery
from pliant.backbones.aligned_inception_resnet import AlignedInceptionResNet, AlignedInceptionResNetBackbone
from pliant.backbones.caffe_resnet import DEPTHS, CaffeResNet, CaffeResNetBackbone
from pliant.backbones.timm_backbone import TimmBackbone
from pliant.backbones.weights import load_weights

__all__ = [
    "AlignedInceptionResNet",
    "AlignedInceptionResNetBackbone",
    "Backbone",
    "BackboneOptions",
    "CaffeResNet",
    "CaffeResNetBackbone",
    "TimmBackbone",
    "backbone",
    "load_weights",
]

Backbone = CaffeResNetBackbone | AlignedInceptionResNetBackbone | TimmBackbone
_ALIGNED = "aligned_inception_resnet"


class BackboneOptions(TypedDict, total=False):
    """The arguments of `backbone` that networks pass on."""

    weights: str | Path | None
    frozen: bool
    dilation: int
    padded_pool: bool
    offset_groups: int
    modulated: bool
    border: str
    offset_dilation: int | None
    image_mean: Sequence[float] | None
    freeze_below: str | None


def backbone(
    name: str = "resnet101",
    *,
    weights: str | Path | None = None,
    frozen: bool = True,
    deform_layers: int = 0,
    dilation: int = 2,
    padded_pool: bool = False,
    offset_groups: int = 1,
    modulated: bool = False,
    border: str = "paper",
    offset_dilation: int | None = None,
    image_mean: Sequence[float] | None = None,
    freeze_below: str | None = None,
) -> Backbone:
    """A backbone of stride 16 whose last layers are deformable.

    `TimmBackbone` documents how timm's models are used. Those without a map of stride 16 are refused.

    Args:
        name: `"resnet50"`, `"resnet101"` or `"aligned_inception_resnet"` for the networks of the paper; any other name
            is a timm model.
        weights: a file for `load_weights` (with timm's names for a timm model), or `"pretrained"` for timm's own
            weights.
        frozen: whether batch norms are fixed. Only timm models can set it to False.
        deform_layers: number of deformable layers, the last convolutions with a kernel larger than 1. For the paper's
            ResNets it is 0, 1, 2, 3 or 6 as in the paper's table 1: res5c; res5b and c; res5a to c; these and the last
            three of conv4. Aligned-Inception-ResNet has three per block and nine in conv5.
        dilation: dilation of conv5's 3x3 convolutions; in timm's models, of those that timm dilates for stride 16.
        padded_pool: whether the first pooling is padded as in Keras' port of the weights (the paper's ResNets only).
        offset_groups, modulated, border, offset_dilation: see `pliant.nn.DeformConv2d`.
        image_mean: mean colour to subtract, RGB in 0..1, instead of the usual one (the paper's networks only).
        freeze_below: the first stage that is trained, `"conv4"` or `"conv5"`; None for `"conv3"` as in the paper (the
            paper's networks only).

    Raises:
        ValueError: if the backbone does not have these options or so many layers to deform.

    Examples:
        >>> body = pliant.backbones.backbone("timm/test_resnet", deform_layers=1)
        >>> maps = body(torch.rand(1, 3, 64, 96))
        >>> {name: list(map.shape[2:]) for name, map in maps.items()}
        {'conv4': [4, 6], 'conv5': [4, 6]}
    """
    options: dict[str, Any] = {
        "offset_groups": offset_groups,
        "modulated": modulated,
        "border": border,
        "offset_dilation": offset_dilation,
    }
    model: Backbone
    if name in DEPTHS or name == _ALIGNED:
        if not frozen:
            raise ValueError(f"{name} has fixed batch norms; frozen=False is for timm models")
        model = _paper_backbone(name, dilation, padded_pool)
        if image_mean is not None:
            model.image_mean = tuple(image_mean)
        if freeze_below is not None:
            model.freeze_below(freeze_below)
        names = model.deformable_names(deform_layers)
        frozen_names = sorted({name for name in names if name.partition(".")[0] in model.frozen_names})
        if frozen_names:
            raise ValueError(
                f"freeze_below={freeze_below!r} freezes {', '.join(frozen_names)}, which deform_layers={deform_layers} "
                "makes deformable; take fewer layers, or freeze less"
            )
        if names:
            surgery.deform(model, lambda module, _: module in names, **options)
        if weights is not None:
            load_weights(model, weights)
        return model
    own = {"padded_pool": padded_pool, "image_mean": image_mean, "freeze_below": freeze_below}
    given = [f"{option}={value}" for option, value in own.items() if value]
    if given:
        raise ValueError(f"options for the paper's networks, not for {name}: {', '.join(given)}")
    model = TimmBackbone(name, weights=weights, frozen=frozen, dilation=dilation)
    deform_last(model, name, deform_layers, **options)
    return model


def deform_last(model: nn.Module, name: str, layers: int, **options: Any) -> None:
    """Make the last convolutions with a kernel larger than 1 of a network deformable.

    Args:
        model: the network.
        name: its name, for messages.
        layers: number of convolutions.
        options: options of `pliant.deform`.

    Raises:
        ValueError: if the network does not have so many that can be deformed. The message says how many it has.
    """
    most = surgery.most_deformable(model)
    if not 0 <= layers <= most:
        raise ValueError(
            f"deform_layers must be 0 to {most} for {name}, got {layers}: only its last {most} convolutions with a "
            "kernel larger than 1 can be deformed"
        )
    surgery.deform(model, layers, **options)


def _paper_backbone(
    name: str, dilation: int, padded_pool: bool
) -> CaffeResNetBackbone | AlignedInceptionResNetBackbone:
    if name in DEPTHS:
        return CaffeResNetBackbone(DEPTHS[name], dilation, padded_pool=padded_pool)
    if padded_pool:
        raise ValueError(f"padded_pool=True is for the paper's ResNets; the first pooling of {name} always has padding")
    return AlignedInceptionResNetBackbone(dilation)
