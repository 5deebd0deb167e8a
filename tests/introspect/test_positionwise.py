"""Operators that torch does not call pointwise, tried; and networks that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import pliant
from pliant.introspect import sampling_points
from pliant.introspect.positionwise import keeps_places

_aten = torch.ops.aten
MAP = torch.randn(2, 4, 3, 5)
SQUARE = torch.randn(1, 2, 4, 4)


@torch.library.custom_op("pliant_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator of somebody else, which carries no tag."""
    return 2 * x


@torch.library.custom_op("pliant_tests::shifted", mutates_args=())
def shifted(x: Tensor) -> Tensor:
    return x.roll(1, -1)


@pytest.mark.parametrize(
    ("func", "args", "kept"),
    [
        (_aten.hardswish_.default, (MAP,), True),
        (_aten.relu6_.default, (MAP,), True),
        (_aten.gelu_.default, (MAP,), True),
        (_aten.masked_fill_.Scalar, (MAP, MAP > 9, 0.0), True),
        (_aten._log_softmax.default, (MAP, 1, False), True),
        (_aten.glu.default, (MAP, 1), True),  # over channels
        (torch.ops.pliant_tests.twice.default, (MAP,), True),
        (torch.ops.pliant_tests.shifted.default, (MAP,), False),
        (_aten.glu.default, (SQUARE, 2), False),
        (_aten._log_softmax.default, (MAP, 3, False), False),
        (_aten.cumsum.default, (MAP, 2), False),
        (_aten.cumsum.default, (MAP, 3), False),
        (_aten.flip.default, (MAP, [2]), False),
        (_aten.flip.default, (MAP, [3]), False),
        (_aten.roll.default, (MAP, [1], [2]), False),
        (_aten.transpose.int, (SQUARE, 2, 3), False),
        (_aten.avg_pool2d.default, (MAP, [3, 3], [1, 1], [1, 1]), False),
        (_aten.zeros_like.default, (MAP,), False),
        (_aten.hardswish_.default, (MAP.long(),), False),
    ],
)
def test_an_operator_keeps_places_or_not(func: Any, args: tuple[Any, ...], kept: bool) -> None:
    before = args[0].clone()
    size = (args[0].shape[2], args[0].shape[3])
    assert keeps_places(func, args, {}, args[0], size, 0) is kept
    assert torch.equal(args[0], before)


def test_where_the_map_lies_otherwise_every_number_is_a_place() -> None:
    tokens = MAP.flatten(2).mT.contiguous()  # [N, H * W, C]
    assert keeps_places(_aten.hardswish.default, (tokens,), {}, tokens, (3, 5), 0)
    assert not keeps_places(_aten._log_softmax.default, (tokens, 1, False), {}, tokens, (3, 5), 0)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MobileNetV3": (lambda: torchvision.models.mobilenet_v3_small(width_mult=0.35).features, 2),
    "LR-ASPP": (
        lambda: (
            torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=2).backbone
        ),
        2,
    ),
    "EfficientNet": (lambda: timm.create_model("test_efficientnet"), 1),
    "timm's MobileNetV3": (lambda: timm.create_model("mobilenetv3_small_050"), 2),
    "ConvNeXt": (lambda: timm.create_model("test_convnext"), 2),
    "RegNet": (lambda: timm.create_model("test_byobnet"), 2),
    "ShuffleNet": (lambda: torchvision.models.shufflenet_v2_x0_5(), 2),
    "DenseNet": (lambda: torchvision.models.DenseNet(8, (2, 2), 16), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_field_are_followed_to_the_image(name: str) -> None:
    build, depth = NETWORKS[name]
    model = pliant.deform(build(), depth)
    points = sampling_points(model, torch.rand(3, 64, 64), at=(0, 0), depth=depth)
    assert points.pixels.shape[-1] == 2
    assert points.pixels.isfinite().all()
