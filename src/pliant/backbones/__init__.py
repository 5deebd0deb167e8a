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
    """The arguments of `backbone` that networks take over as they are."""

    weights: str | Path | None
    frozen: bool
    dilation: int
    padded_pool: bool
    offset_groups: int
    modulated: bool
    border: str
    offset_dilation: int | None
    image_mean: Sequence[float] | None


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
) -> Backbone:
    """A backbone of stride 16 with its last layers deformable.

    timm's models are taken as `TimmBackbone` says, and refused where they have no map of stride 16.

    Args:
        name: `"resnet50"`, `"resnet101"` or `"aligned_inception_resnet"` for the paper's form; any other name is a
            timm model.
        weights: a file (`load_weights`; with timm's names for a timm model), or `"pretrained"` for timm's own.
        frozen: fixed batch norms; only timm models can turn it off.
        deform_layers: how many of the last convolutions with a kernel larger than 1 become deformable. For the
            paper's ResNets 0, 1, 2, 3 or 6, as in its Table 1: res5c; res5b, c; res5a to c; and the last three
            of conv4. Aligned-Inception-ResNet has three in a block, nine in conv5.
        dilation: of conv5's 3x3 convolutions; of timm's models those that timm dilates for stride 16, if any.
        padded_pool: the first pooling as in Keras' port of the weights (the paper's ResNets only).
        offset_groups, modulated, border, offset_dilation: as for `pliant.nn.DeformConv2d`.
        image_mean: the colour that is subtracted, RGB in 0..1, in place of the usual one (the paper's networks only).
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
        names = model.deformable_names(deform_layers)
        if names:
            surgery.deform(model, lambda module, _: module in names, **options)
        if weights is not None:
            load_weights(model, weights)
        return model
    if padded_pool or image_mean is not None:
        raise ValueError(
            f"padded_pool={padded_pool}, image_mean={image_mean} are for the paper's ResNets, not for {name}"
        )
    model = TimmBackbone(name, weights=weights, frozen=frozen, dilation=dilation)
    deform_last(model, name, deform_layers, **options)
    return model


def deform_last(model: nn.Module, name: str, layers: int, **options: Any) -> None:
    """Make the last convolutions with a kernel larger than 1 of a network deformable.

    Args:
        model: the network.
        name: of it, to be named.
        layers: how many.
        options: of `pliant.deform`.

    Raises:
        ValueError: it does not have so many that can be deformed; the message says how many it has.
    """
    most = surgery.most_deformable(model)
    if not 0 <= layers <= most:
        raise ValueError(
            f"deform_layers={layers}: of the convolutions with a kernel larger than 1 of {name}, the last {most} can "
            "be deformed"
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
