"""Aligned-Inception-ResNet: its size, its interface, and that its cells are centred on their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import conv2d
from torch.nn.modules.utils import _pair
from torchvision.ops import FrozenBatchNorm2d

from pliant.backbones import (
    AlignedInceptionResNet,
    AlignedInceptionResNetBackbone,
    CaffeResNetBackbone,
    backbone,
)
from pliant.nn import DeformConv2d

Paths = dict[tuple[int, float], float]  # (stride, shift of the centre) to radius, all in pixels
WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


class Centres(fx.Interpreter):
    """Follows every path through a network by the geometry of its layers; `at` is what arrives at each of them.

    Cell i of a map is centred on pixel `stride * i + shift`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(model))
        self.at: dict[str, Paths] = {}
        self.run({(1, 0.0): 0.0})

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Paths:
        layer = self.fetch_attr(target)
        paths: Paths = args[0]
        if isinstance(layer, WINDOWS):
            kernel, step, pad = (_pair(value)[1] for value in (layer.kernel_size, layer.stride, layer.padding))
            reach = _pair(getattr(layer, "dilation", 1))[1] * (kernel - 1) / 2
            paths = joined(
                {(stride * step, shift + stride * (reach - pad)): radius + stride * reach}
                for (stride, shift), radius in paths.items()
            )
            self.at[target] = paths
        return paths

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Paths:
        flat = [value for arg in args for value in (arg if isinstance(arg, list | tuple) else (arg,))]
        return joined(value for value in flat if isinstance(value, dict))

    call_method = call_function

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Paths:
        return {}


def joined(parts: Iterable[Paths]) -> Paths:
    result: Paths = {}
    for part in parts:
        for key, radius in part.items():
            result[key] = max(radius, result.get(key, 0.0))
    return result


def misaligned(model: nn.Module) -> dict[int, float]:
    """The largest shift of a centre from its pixel on any path, by stride; empty for an aligned network."""
    worst: dict[int, float] = {}
    for paths in Centres(model).at.values():
        for stride, shift in paths:
            if shift:
                worst[stride] = max(abs(shift), worst.get(stride, 0.0))
    return worst


class Average(nn.Module):
    """One channel, and the window of another layer: its positive weights let a gradient reach all that it sees."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        kernel = _pair(layer.kernel_size)
        self.weight = torch.full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.float64)
        self.geometry = (layer.stride, layer.padding, getattr(layer, "dilation", 1))

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x.mean(1, keepdim=True), self.weight, None, *self.geometry)


def averaging(model: nn.Module) -> nn.Module:
    """The network with windows that average, and without what does not see beyond a cell."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, WINDOWS):
                setattr(parent, name, Average(layer))
            elif isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d | nn.Linear):
                setattr(parent, name, nn.Identity())
    return model


def seen(model: nn.Module, map_name: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The image `[1, 1, *size]` that goes into an averaging network, and the map that comes out of a module."""
    maps = []
    handle = model.get_submodule(map_name).register_forward_hook(lambda module, args, out: maps.append(out))
    image = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    model(image)
    handle.remove()
    return image, maps[-1]


def extent(image: Tensor, cell: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, first and last column of the image that a cell sees."""
    (gradient,) = torch.autograd.grad(cell, image, retain_graph=True)
    rows, columns = gradient[0, 0].nonzero(as_tuple=True)
    return (int(rows.min()), int(rows.max())), (int(columns.min()), int(columns.max()))


def on_meta(build: Any, *args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **kwargs).eval()


def test_parameters_of_the_paper() -> None:
    model = on_meta(AlignedInceptionResNet)
    norms = sum(
        p.numel() for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()
    )
    assert sum(p.numel() for p in model.parameters()) - norms == 64_252_072
    assert norms == 129_728


@pytest.mark.parametrize("options", [{}, {"dilated": True}])
def test_every_path_is_centred_on_its_pixel(options: dict[str, Any]) -> None:
    model = on_meta(AlignedInceptionResNet, **options)
    assert misaligned(model) == {}
    at = Centres(model).at
    assert {stride for paths in at.values() for stride, _ in paths} == {2, 4, 8, 16} | (
        set() if "dilated" in options else {32}
    )
    assert len(at) == 2 + 33 * 6 + 4


@pytest.mark.parametrize("dilation", [2, 6])
def test_backbone_is_aligned_too(dilation: int) -> None:
    assert misaligned(on_meta(AlignedInceptionResNetBackbone, dilation)) == {}


def test_layers_without_padding_shift_cells() -> None:
    inception = misaligned(on_meta(timm.create_model, "inception_resnet_v2"))
    assert inception == {2: 3.0, 4: 9.0, 8: 13.0, 16: 21.0, 32: 37.0}
    # Nor does the centre lie anywhere in the cell, which covers the pixels from stride * i up to the next cell's first.
    assert all(shift > stride - 1 for stride, shift in inception.items())


def test_the_check_sees_one_wrong_padding() -> None:
    model = on_meta(AlignedInceptionResNet)
    model.maxpool.padding = 0
    assert misaligned(model) == {4: 2.0, 8: 2.0, 16: 2.0, 32: 2.0}
    model = on_meta(AlignedInceptionResNet)
    conv = model.layer3[5].branch2[1][0]
    conv.padding, conv.dilation = (3, 3), (2, 2)
    assert misaligned(model) == {16: 16.0, 32: 16.0}
    assert misaligned(on_meta(CaffeResNetBackbone, 50)) == {4: 2.0, 8: 2.0, 16: 2.0}
    assert misaligned(on_meta(CaffeResNetBackbone, 50, padded_pool=True)) == {}


@pytest.mark.parametrize(
    ("name", "stride", "size"),
    [
        ("layer1", 4, (96, 160)),
        ("layer2", 8, (97, 330)),
        ("layer3", 16, (75, 2400)),
        ("layer4", 32, (64, 3008)),
        ("layer4", 32, (101, 3039)),
    ],
)
def test_gradients_agree_with_the_geometry(name: str, stride: int, size: tuple[int, int]) -> None:
    model = on_meta(AlignedInceptionResNet)
    last = Centres(model).at[f"{name}.{len(model.get_submodule(name)) - 1}.join.0"]
    ((_, shift), radius) = next(iter(last.items()))
    assert (list(last), shift) == ([(stride, 0.0)], 0.0)
    image, cells = seen(averaging(model), name, size)
    assert list(cells.shape[2:]) == [-(-side // stride) for side in size]
    rows, columns = cells.shape[2:]
    whole = 0
    for row, column in [(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2), (1, columns // 2 + 1)]:
        for place, side, (first, last_seen) in zip(
            (row, column), size, extent(image, cells[0, 0, row, column]), strict=True
        ):
            pixel = place * stride
            assert (first, last_seen) == (max(0, pixel - radius), min(side - 1, pixel + radius))
            whole += first > 0 and last_seen < side - 1
    assert whole > 0


def test_gradients_show_the_shift_of_inception_resnet_v2() -> None:
    model = averaging(on_meta(timm.create_model, "inception_resnet_v2"))
    image, cells = seen(model, "conv2d_7b", (107, 3200))
    column = cells.shape[3] // 2
    first, last = extent(image, cells[0, 0, 0, column])[1]
    assert 0 < first < last < 3199
    assert (first + last) / 2 - 32 * column == 37.0


def test_backbone_serves_as_the_resnets_do() -> None:
    body = backbone("aligned_inception_resnet", deform_layers=9, dilation=4)
    assert isinstance(body, AlignedInceptionResNetBackbone)
    layers = {name: module for name, module in body.named_modules() if isinstance(module, DeformConv2d)}
    assert len(layers) == 9
    assert all(name.startswith("layer4.") and layer.dilation == (4, 4) for name, layer in layers.items())
    before = {name: value.clone() for name, value in body.state_dict().items() if "running" in name}
    features = body.train()(torch.randn(1, 3, 64, 33))
    assert features["conv4"].shape == (1, body.conv4_channels, 4, 3)
    assert features["conv5"].shape == (1, body.conv5_channels, 4, 3)
    features["conv5"].mean().backward()
    trained = {name for name, parameter in body.named_parameters() if parameter.grad is not None}
    assert not any(name.startswith(("conv1", "bn1", "layer1")) for name in trained)
    assert "layer4.2.branch2.2.0.offset_conv.weight" in trained
    assert all(torch.equal(body.state_dict()[name], value) for name, value in before.items())


def test_last_layers_are_counted_from_the_end() -> None:
    body = on_meta(AlignedInceptionResNetBackbone)
    assert body.deformable_names(0) == []
    assert body.deformable_names(2) == ["layer4.2.branch2.1.0", "layer4.2.branch2.2.0"]
    assert body.deformable_names(10)[0] == "layer3.22.branch2.2.0"
    with pytest.raises(ValueError, match="deform_layers must be 0 to 90, got 91"):
        body.deformable_names(91)


def test_options_of_other_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match="has fixed batch norms"):
        backbone("aligned_inception_resnet", frozen=False)
    with pytest.raises(ValueError, match="padded_pool=True is for the paper's ResNets"):
        backbone("aligned_inception_resnet", padded_pool=True)
