"""Feature maps of timm's models at given strides, for images of any size, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

# The options with which families take images of any size, in the order in which they are tried.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
_MULTIPLES = (1, 16, 32)
_PROBES = ((144, 80), (75, 107))


@dataclass(frozen=True)
class Maps:
    """How to get maps from a timm model.

    Attributes:
        options: options of `timm.create_model` besides `features_only`.
        strides: strides of the maps.
        levels: indices of the maps among the model's.
        multiple: images are padded with zeros at the bottom and right to a multiple of this many pixels.
        channels_last: whether the model's maps are `[N, H, W, C]`.
    """

    options: dict[str, Any]
    strides: tuple[int, ...]
    levels: tuple[int, ...]
    multiple: int
    channels_last: bool

    def of(self, body: nn.Module, x: Tensor) -> list[Tensor]:
        """The maps `[N, C, ceil(H / stride), ceil(W / stride)]` of images `[N, 3, H, W]`."""
        height, width = x.shape[-2:]
        if self.multiple > 1:
            x = pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        found = body(x)
        maps = [found[level] for level in self.levels]
        if self.channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        if self.multiple > 1:
            sizes = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
            maps = [each[:, :, :rows, :columns] for each, (rows, columns) in zip(maps, sizes, strict=True)]
        return maps


def find_maps(name: str, strides: Sequence[int]) -> tuple[nn.Module, Maps]:
    """A timm model without weights, and how to get its maps of these strides.

    If the last stride occurs twice, the model is first tried with its last stage dilated (timm's `output_stride`). If
    timm cannot dilate the model, it ends at that stride, with its last two maps there, or its only one twice.

    Args:
        name: a timm model.
        strides: strides in ascending order.

    Raises:
        ValueError: if the model has no such maps, or does not take images of any size.
    """
    dilated = [{"output_stride": strides[-1]}] if strides[-1] == strides[-2] else []
    reasons: dict[str, str] = {}
    for given in (*dilated, *_ANY_SIZE):
        options = dict(given)
        try:
            body: Any = timm.create_model(name, features_only=True, **options)
            found = list(body.feature_info.reduction())
            levels = _levels(found, strides)
            if not levels:
                reasons[str(given)] = f"its maps have strides {', '.join(map(str, found))}"
                continue
            if dilated and "output_stride" not in options:
                ends = sorted({body.feature_info.out_indices[level] for level in levels})
                options = {**options, "out_indices": tuple(ends)}
                body = timm.create_model(name, features_only=True, **options)
                levels = _levels(list(body.feature_info.reduction()), strides)
            return body, _tried(body, options, tuple(strides), tuple(levels))
        except Exception as error:  # families refuse in many ways, some without a message
            reasons[str(given)] = _said(error)
    reason = reasons[str({})]  # not that it lacks an option that other families have
    raise ValueError(
        f"timm/{name} has no maps of stride {', '.join(map(str, dict.fromkeys(strides)))} for images of any size "
        f"({reason}); docs/your-model.md lists the families that do"
    )


def _levels(found: list[int], strides: Sequence[int]) -> list[int]:
    """The levels of these strides, or none. A stride given twice has its last two levels, or its only one twice."""
    if not set(strides) <= set(found):
        return []
    last = {stride: [level for level, each in enumerate(found) if each == stride] for stride in strides}
    return [
        last[stride][-2] if stride in strides[i + 1 :] and len(last[stride]) > 1 else last[stride][-1]
        for i, stride in enumerate(strides)
    ]


@torch.no_grad()
def _tried(body: Any, options: dict[str, Any], strides: tuple[int, ...], levels: tuple[int, ...]) -> Maps:
    """How a model gives maps of these strides, found by running it on two image sizes; otherwise raises its error."""
    channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
    channels = [body.feature_info.channels()[level] for level in levels]
    device = next(body.parameters()).device
    training = body.training
    body.eval()
    last: Exception = ValueError("it has no parameters")
    for multiple in _MULTIPLES:
        maps = Maps(options, strides, levels, multiple, channels_last)
        try:
            for height, width in _PROBES:
                given = [
                    tuple(each.shape[1:]) for each in maps.of(body, torch.zeros(1, 3, height, width, device=device))
                ]
                expected = [
                    (count, -(-height // stride), -(-width // stride))
                    for count, stride in zip(channels, strides, strict=True)
                ]
                if given != expected:
                    raise ValueError(f"for images of {height}x{width} its maps are {given} and not {expected}")
        except Exception as error:  # see `find_maps`
            last = error
            continue
        body.train(training)
        return maps
    raise last


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"timm: {lines[0][:160].rstrip('.')}" if lines else f"timm: {type(error).__name__}"
