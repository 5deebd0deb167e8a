from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pliant import ops
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, RoIPool

GEOMETRIES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "uneven": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 2},
    "same": {"kernel_size": (5, 3), "padding": "same", "dilation": (1, 2)},
    "valid": {"kernel_size": 3, "padding": "valid", "bias": False},
}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_starts_as_the_convolution_whose_weights_it_loads(geometry: str, modulated: bool) -> None:
    plain = nn.Conv2d(4, 6, **GEOMETRIES[geometry])
    layer = DeformConv2d(4, 6, **GEOMETRIES[geometry], offset_groups=2, modulated=modulated)
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert sorted(missing) == ["offset_conv.bias", "offset_conv.weight"]
    assert not unexpected
    x = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(layer(x), plain(x))


def test_the_branch_moves_the_samples_and_learns() -> None:
    layer = DeformConv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    layer.offset_conv.bias.data = torch.tensor([0.0, 1.0])  # one cell to the right
    x = torch.arange(6.0).view(1, 1, 2, 3)
    out = layer(x)
    assert out.flatten().tolist() == [1.0, 2.0, 0.0, 4.0, 5.0, 0.0]
    out.sum().backward()
    assert layer.offset_conv.weight.grad.abs().sum() > 0


def test_modulation_is_twice_a_sigmoid() -> None:
    layer = DeformConv2d(2, 2, 3, padding=1, modulated=True)
    offset, mask = layer.split(torch.zeros(1, 27, 4, 5))
    assert offset.shape == (1, 18, 4, 5)
    assert mask.shape == (1, 9, 4, 5)
    assert mask.unique().tolist() == [1.0]


def test_authors_border_reaches_the_operator() -> None:
    torch.manual_seed(3)
    layer = DeformConv2d(2, 2, 3, padding=1)
    nn.init.normal_(layer.offset_conv.weight)
    other = copy.deepcopy(layer)
    other.border = "authors"
    x = torch.randn(1, 2, 6, 5)
    expected = ops.deform_conv2d(x, layer.offset_conv(x), layer.weight, layer.bias, padding=1, border="authors")
    assert torch.equal(other(x), expected)
    assert not torch.allclose(layer(x), expected)


def test_the_offset_branch_may_have_a_dilation_of_its_own() -> None:
    layer = DeformConv2d(4, 6, (3, 5), stride=2, padding=(4, 7), dilation=(4, 3), offset_dilation=(2, 1))
    assert layer.offset_conv.dilation == (2, 1)
    assert layer.offset_conv.padding == (2, 3)
    assert (
        layer(torch.rand(1, 4, 9, 12)).shape
        == nn.Conv2d(4, 6, (3, 5), 2, (4, 7), (4, 3))(torch.rand(1, 4, 9, 12)).shape
    )
    with pytest.raises(ValueError, match=r"output size .*padding \(0, 0\).*got 1"):
        DeformConv2d(4, 4, 3, dilation=2, offset_dilation=1)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="offset_groups must divide in_channels 4, got 3"):
        DeformConv2d(4, 4, 3, offset_groups=3)
    with pytest.raises(ValueError, match="border must be one of 'paper', 'authors', got 'zeros'"):
        DeformConv2d(4, 4, 3, border="zeros")
    with pytest.raises(ValueError, match="padding='same' needs an even"):
        DeformConv2d(4, 4, 2, padding="same")


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_deform_roi_pool_starts_plain_and_moves_by_its_fc(sampling: str) -> None:
    x = torch.randn(2, 3, 9, 11)
    rois = [torch.tensor([[0.0, 0, 40, 30]]), torch.tensor([[8.0, 8, 64, 64], [3, 3, 20, 50]])]
    layer = DeformRoIPool(3, 4, 1 / 8, sampling=sampling)
    plain = RoIPool(4, 1 / 8, sampling)(x, rois)
    assert torch.equal(layer(x, rois), plain)
    layer.offset_fc.bias.data[:16] = 2.0  # every bin by 2 * gamma widths to the right
    offset = torch.zeros(3, 2, 4, 4)
    offset[:, 0] = 2.0
    assert torch.equal(layer(x, rois), ops.deform_roi_pool(x, rois, offset, 4, 1 / 8, 0.1, sampling=sampling))
    layer(x, rois).square().sum().backward()
    assert layer.offset_fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_deform_ps_roi_pool_has_class_aware_fields(sampling: str) -> None:
    features, scores = torch.randn(1, 5, 9, 11), torch.randn(1, 2 * 9, 9, 11)
    rois = torch.tensor([[0.0, 0, 0, 40, 30], [0, 8, 8, 64, 64]])
    layer = DeformPSRoIPool(5, 3, 1 / 8, offset_classes=2, sampling=sampling)
    plain = ops.deform_ps_roi_pool(scores, rois, None, 3, 1 / 8, sampling=sampling)
    assert torch.equal(layer(scores, features, rois), plain)
    layer.offset_conv.bias.data[18:27] = 1.0  # class 1, x, all nine bins
    moved = layer(scores, features, rois)
    assert torch.equal(moved[:, 0], plain[:, 0])
    offset = torch.zeros(2, 4, 3, 3)
    offset[:, 2] = 1.0
    expected = ops.deform_ps_roi_pool(scores, rois, offset, 3, 1 / 8, sampling=sampling)
    torch.testing.assert_close(moved, expected)
    assert not torch.allclose(moved[:, 1], plain[:, 1])
