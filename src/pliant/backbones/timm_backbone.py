"""timm's models as backbones of stride 16."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from pliant.backbones.timm_maps import Maps, find_maps
from pliant.backbones.weights import stored_weights
from pliant.runs.tensors import require_fit
from pliant.suggestions import did_you_mean


class TimmBackbone(nn.Module):
    """The last two feature maps of a timm model at stride 16, with the interface of the paper's ResNets.

    If timm can dilate the last stage to keep it at stride 16 (`output_stride`), the maps are those of the last two
    stages. Any other model ends at stride 16: the maps are its last two of that stride, or its only one twice. The
    table in docs/your-model.md lists the families.

    Args:
        name: a timm model, with or without the prefix `timm/`.
        weights: see `timm_model`.
        frozen: batch norms with fixed statistics and affine parameters. Set it to False to train from scratch.
        dilation: dilation of the convolutions that keep the last stage at stride 16, instead of timm's 2.

    Shape:
        - Input: normalised images `[N, 3, H, W]`
        - Output: `{"conv4": [N, conv4_channels, H / 16, W / 16], "conv5": ...}`, rounded up

    Raises:
        ValueError: if timm has no such model, or it has no map of stride 16 for images of any size.
    """

    def __init__(self, name: str, *, weights: str | Path | None = None, frozen: bool = True, dilation: int = 2) -> None:
        super().__init__()
        body, self.maps = timm_body(name, weights, (16, 16))
        if dilation != 2:
            _dilate(body, name, dilation)
        channels = body.feature_info.channels()
        self.conv4_channels, self.conv5_channels = (channels[level] for level in self.maps.levels)
        config = body.pretrained_cfg
        self.image_mean, self.image_std = tuple(config["mean"]), tuple(config["std"])
        if frozen and weights is None:
            undo_zero_init(body)
        self.body = freeze_batch_norm_2d(body) if frozen else body

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        conv4, conv5 = self.maps.of(self.body, x)
        return OrderedDict(conv4=conv4, conv5=conv5)


def timm_body(name: str, weights: str | Path | None, strides: Sequence[int]) -> tuple[Any, Maps]:
    """A timm model with maps of these strides, and how to get them; see `timm_model` and `find_maps`."""
    name = timm_name(name)
    if weights is None:
        return find_maps(name, strides)
    with torch.random.fork_rng(devices=[]):
        _, maps = find_maps(name, strides)
    return timm_model(name, weights, features_only=True, **maps.options), maps


def timm_name(name: str) -> str:
    """The name of a timm model without the prefix `timm/`.

    Raises:
        ValueError: if timm has no such model. The message suggests similar ones.
    """
    given, name = name, name.removeprefix("timm/")
    if not timm.is_model(name):
        known = (
            "resnet50",
            "resnet101",
            "aligned_inception_resnet",
            *(f"timm/{model}" for model in timm.list_models()),
        )
        raise ValueError(
            "backbone must be resnet50, resnet101, aligned_inception_resnet or a timm model after timm/, "
            f"got {given!r}{did_you_mean(given, known)}"
        )
    return name


def timm_model(name: str, weights: str | Path | None, **options: Any) -> nn.Module:
    """A timm model.

    Args:
        name: with or without the prefix `timm/`.
        weights: `"pretrained"` for timm's own from the Hugging Face Hub, or a file (`.safetensors`, or a `.pth` dict of
            tensors) with timm's names, which for ResNets are torchvision's. Its classifier is not loaded.
        options: options of `timm.create_model`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if there is no such model, or parameters in the file are missing, unknown or of the wrong shape.
    """
    name = timm_name(name)
    if weights is None or weights == "pretrained":
        return timm.create_model(name, pretrained=weights is not None, **options)
    expected = whole_names(name)
    found = {key: value for key, value in stored_weights(weights, expected).items() if not key.startswith(_last(name))}
    require_fit(weights, found, expected, name)
    return _from_state(name, found, options)


def whole_names(name: str) -> dict[str, torch.Size]:
    """The names and shapes of the tensors of a timm model, without its classifier and the counters of its norms."""
    name = timm_name(name)
    return {
        key: value.shape
        for key, value in timm.create_model(name).state_dict().items()
        if not key.startswith(_last(name)) and not key.endswith("num_batches_tracked")
    }


def timm_features(name: str, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a timm model's features, which may have other names than those of the whole model.

    Args:
        name: with or without the prefix `timm/`.
        state: the tensors of the whole model, as in `whole_names`.
        options: options of `timm.create_model` besides `features_only`.
    """
    with torch.random.fork_rng(devices=[]):
        return dict(_from_state(timm_name(name), state, {"features_only": True, **options}).state_dict())


def _from_state(name: str, found: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module:
    state = {**timm.create_model(name).state_dict(), **found}
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **options)
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _last(name: str) -> tuple[str, ...]:
    """The prefixes of a timm model's classifier."""
    config: Any = timm.get_pretrained_cfg(name)
    last = (config.classifier if config is not None else None) or ()
    return tuple(f"{layer}." for layer in ((last,) if isinstance(last, str) else last))


def _dilate(body: nn.Module, name: str, dilation: int) -> None:
    dilated = [conv for conv in body.modules() if isinstance(conv, nn.Conv2d) and conv.dilation == (2, 2)]
    if not dilated or any(isinstance(conv.padding, str) for conv in dilated):
        raise ValueError(f"{name} has no convolutions of dilation 2 that could have dilation={dilation}")
    for conv in dilated:
        conv.padding = tuple(int(side) // 2 * dilation for side in conv.padding)
        conv.dilation = (dilation, dilation)


@torch.no_grad()
def undo_zero_init(body: nn.Module) -> None:
    """Set to one the scales that timm initialises to zero: fixed at zero, a residual branch would never train."""
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
