from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import pliant
from pliant import ops
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, PSRoIPool, RoIPool

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


WRONG = {
    "in_channels must be at least 1, got 0": lambda: DeformConv2d(0, 4, 3),
    "out_channels must be at least 1, got 0": lambda: DeformConv2d(4, 0, 3),
    "kernel_size must be at least 1, got 0": lambda: DeformConv2d(4, 4, 0),
    "stride must be at least 1": lambda: DeformConv2d(4, 4, 3, stride=(1, 0)),
    "padding must be at least 0, got -1": lambda: DeformConv2d(4, 4, 3, padding=-1),
    "dilation must be at least 1, got 0": lambda: DeformConv2d(4, 4, 3, dilation=0),
    "kernel_size must be an int or a pair of ints": lambda: DeformConv2d(4, 4, (3, 3, 3)),
    "output_size must be at least 1, got 0": lambda: RoIPool(0, 1.0),
    "spatial_scale must be positive and finite, got -1": lambda: PSRoIPool(3, -1.0),
    "sampling must be one of 'paper', 'authors', got 'max'": lambda: DeformRoIPool(4, 3, 1.0, sampling="max"),
    "channels must be at least 1, got 0": lambda: DeformRoIPool(0, 3, 1.0),
    "offset_classes must be at least 1, got 0": lambda: DeformPSRoIPool(4, 3, 1.0, offset_classes=0),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused_when_the_layer_is_built(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


ROIS = torch.tensor([[0.0, 0, 0, 40, 30], [0, 8, 8, 64, 64]])
LAYERS = {
    "plain": (lambda: DeformConv2d(4, 6, 3, padding=1), (torch.randn(1, 4, 9, 7),)),
    "modulated": (lambda: DeformConv2d(4, 6, 3, modulated=True), (torch.randn(1, 4, 9, 7),)),
    "roi": (lambda: RoIPool(3, 1 / 8), (torch.randn(1, 4, 9, 7), ROIS)),
    "ps": (lambda: PSRoIPool(2, 1 / 8, "authors"), (torch.randn(1, 4, 9, 7), ROIS)),
    "deform_roi": (lambda: DeformRoIPool(4, 3, 1 / 8), (torch.randn(1, 4, 9, 7), ROIS)),
    "deform_ps": (lambda: DeformPSRoIPool(5, 2, 1 / 8), (torch.randn(1, 8, 9, 7), torch.randn(1, 5, 9, 7), ROIS)),
}


def built(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    build, inputs = LAYERS[name]
    layer = build()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer.eval(), inputs


@pytest.mark.parametrize("name", LAYERS)
def test_what_the_layers_refuse_is_caught_as_any_error_of_torchvision(name: str) -> None:
    layer, (*maps, last) = built(name)
    learned = any(True for _ in layer.parameters())
    for index in range(len(maps) if learned and len(maps) > 0 else 0):
        wrong = [*maps, last]
        wrong[index] = maps[index].double()
        with pytest.raises(TypeError, match="dtype") as caught:
            layer(*wrong)
        assert isinstance(caught.value, RuntimeError)
    place = max(len(maps) - 1, 0)
    both = [*maps, last]
    both[place] = both[place][:, :3].double()  # the shape is wrong too, for all that check it
    if learned or name == "ps":
        with pytest.raises(ValueError, match="channels") as caught:
            layer(*both)
        assert isinstance(caught.value, RuntimeError)
    both[place] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"dimensions, got shape \[2, 2\]"):
        layer(*both)


@pytest.mark.parametrize("name", ["plain", "modulated"])
def test_an_image_without_its_batch_axis_is_taken_as_conv2d_takes_it(name: str) -> None:
    layer, (x,) = built(name)
    assert torch.equal(layer(x[0]), layer(x)[0])
    modified = nn.Conv2d(4, 6, 3)
    pliant.deform(container := nn.Sequential(modified), "0", modulated=name == "modulated")
    torch.testing.assert_close(container(x[0]), modified(x[0]))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_can_be_scripted_saved_and_loaded(name: str) -> None:
    layer, inputs = built(name)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert torch.equal(loaded(*inputs), layer(*inputs))
    if name not in ("plain", "modulated"):
        as_list = [inputs[-1][:, 1:]]
        assert torch.equal(loaded(*inputs[:-1], as_list), layer(*inputs[:-1], as_list))


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
