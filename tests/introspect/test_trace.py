"""Where networks sample, against what gradients reach and what the layers' geometry says."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import pliant
from pliant.introspect import Trace, sampling_points


class Moved(nn.Module):
    """torchvision's layer with whole, random offsets at every place; two groups throughout."""

    def __init__(self, channels: int, **geometry: int) -> None:
        super().__init__()
        self.conv = torchvision.ops.DeformConv2d(channels, channels, 3, groups=2, **geometry)
        self.offsets = torch.Generator().manual_seed(channels + sum(geometry.values()))

    def forward(self, x: Tensor) -> Tensor:
        size = nn.functional.conv2d(
            x[:1, :1], x.new_ones(1, 1, 3, 3), None, self.conv.stride, self.conv.padding, self.conv.dilation
        ).shape[2:]
        self.offsets.manual_seed(size[0])
        offset = torch.randint(-2, 3, (1, 36, *size), generator=self.offsets).to(x)
        return self.conv(x, offset)


def positive(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    return model.double()


@pytest.mark.parametrize(("at", "group"), [((3, 2), 0), ((3, 2), 1), ((0, 0), 0), ((6, 4), 1)])
def test_points_are_what_the_gradient_of_the_unit_reaches(at: tuple[int, int], group: int) -> None:
    model = positive(
        nn.Sequential(
            Moved(4, padding=1),
            nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
            nn.BatchNorm2d(4),
            nn.Sigmoid(),
            Moved(4, stride=2, padding=2, dilation=2),
            nn.Conv2d(4, 4, 1, groups=2),
            nn.AvgPool2d(2, stride=1),
            nn.ZeroPad2d((1, 0, 2, 1)),
            Moved(4, padding=1),
        )
    ).eval()
    image = torch.rand(4, 22, 17, dtype=torch.float64)
    found = sampling_points(model, image, at, depth=3, offset_group=group)
    assert len(found.cells) == 9 * 6 * 9 * 4 * 9
    batch = image[None].requires_grad_()
    model(batch)[0, 2 * group, at[0], at[1]].backward()
    reached = {(y, x) for y, x in batch.grad[0, 2 * group].nonzero().tolist()}
    read = {(int(y), int(x)) for y, x in found.cells[found.inside].tolist()}
    assert read == reached
    assert torch.equal(found.pixels, found.cells + 0.5)


def test_pixels_are_the_centres_of_what_plain_layers_reach() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 2), nn.AvgPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 4, (2, 5), 1, 0))
    model = positive(nn.Sequential(stem, pliant.nn.DeformConv2d(4, 4, 3, padding=1)))
    for parameter in model[1].offset_conv.parameters():
        nn.init.zeros_(parameter)
    image = torch.rand(3, 61, 70, dtype=torch.float64)
    at = (6, 5)
    found = sampling_points(model, image, at, depth=1)
    batch = image[None].requires_grad_()
    stem(batch)[0, 0, at[0], at[1]].backward()
    reached = batch.grad[0, 0].nonzero().double()
    middle = (reached.amin(0) + reached.amax(0)) / 2 + 0.5
    assert torch.equal(found.pixels[4], middle)
    assert torch.equal(found.unit, middle)
    assert found.pixels[5].tolist() == [middle[0], middle[1] + 4]


def test_images_that_a_detector_scales_and_pads_keep_their_pixels() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = GeneralizedRCNNTransform(40, 100, [0.5] * 3, [0.2] * 3, size_divisible=32)
            self.conv = pliant.nn.DeformConv2d(3, 4, 3, stride=8, padding=1)

        def forward(self, images: list[Tensor]) -> Tensor:
            batch, _ = self.transform(images)
            assert batch.tensors.shape[2:] == (64, 64)
            return self.conv(batch.tensors)

    found = sampling_points(Network(), torch.rand(3, 20, 30), (2, 3), depth=1)
    assert found.unit.tolist() == [(16 + 0.5) / 2, (24 + 0.5) / 2]
    assert found.pixels[0].tolist() == [(15 + 0.5) / 2, (23 + 0.5) / 2]


def grid(*windows: tuple[int, int, int]) -> list[tuple[int, int]]:
    """What 3x3 windows (stride, padding, dilation), the topmost first, read of (0, 0), in cells."""
    points = [(0, 0)]
    for stride, padding, dilation in windows:
        reach = [step * dilation - padding for step in range(3)]
        points = [(y * stride + dy, x * stride + dx) for y, x in points for dy, dx in itertools.product(reach, reach)]
    return points


def test_a_timm_network_reads_what_its_layers_say() -> None:
    model = timm.create_model("resnet10t")
    pliant.deform(model, "layer[34].*.conv2")
    trace = Trace(model, torch.rand(3, 96, 128))
    assert trace.layers == ("layer3.0.conv2", "layer4.0.conv2")
    assert trace.map_size() == (3, 4)
    found = trace.points((0, 0), depth=2)
    assert [tuple(point) for point in found.cells.tolist()] == grid((1, 1, 1), (2, 1, 1), (1, 1, 1))
    model.layer4[0].conv2.offset_conv.bias.data = torch.tensor([0.5, -0.25]).repeat(9)
    moved = sampling_points(model, torch.rand(3, 96, 128), (0, 0), depth=2)
    torch.testing.assert_close(moved.cells, found.cells + 2 * torch.tensor([0.5, -0.25], dtype=torch.float64))
    assert torch.equal(Trace(model, torch.rand(3, 96, 128)).points((0, 0), 2, regular=True).cells, found.cells)


@pytest.mark.parametrize(("name", "number"), [("convnext_atto", 49 * 49), ("efficientnet_b0", 9 * 25)])
def test_channels_last_parts_and_gates_are_passed(name: str, number: int) -> None:
    model = pliant.deform(timm.create_model(name), 2)
    trace = Trace(model, torch.rand(3, 64, 64))
    chain = trace.chain(2)
    assert sum(step.window.offset is not None for step in chain) == 2
    found = trace.points((1, 1), depth=2)
    assert len(found.cells) == number
    assert torch.equal(found.cells, trace.points((1, 1), depth=2, regular=True).cells)


class Branches(nn.Module):
    def __init__(self, block: str) -> None:
        super().__init__()
        self.block = block
        self.low, self.high = (pliant.nn.DeformConv2d(3, 3, 3, padding=1) for _ in range(2))
        self.plain = nn.Conv2d(3, 3, 5, padding=2)
        self.gate = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        below = self.low(x)
        if self.block == "sum":
            below = below + self.plain(below)
        elif self.block == "shortcut":
            below = self.plain(x) + below
        elif self.block == "product":
            below = self.gate(below) * below
        elif self.block == "concatenation":
            below = torch.cat([self.plain(x)[:, :1], below[:, 1:]], dim=1)
        return self.high(below)


@pytest.mark.parametrize(
    ("block", "number"),
    [("sum", 9 * 25 * 9), ("shortcut", 81), ("product", 81), ("concatenation", 81), ("nothing", 81)],
)
def test_the_main_branch_is_followed(block: str, number: int) -> None:
    assert len(sampling_points(Branches(block), torch.rand(3, 9, 11), (4, 4), depth=2).cells) == number


def test_a_layer_that_runs_twice_has_two_names() -> None:
    layer = pliant.nn.DeformConv2d(3, 3, 3, padding=1)
    trace = Trace(nn.Sequential(layer, nn.ReLU(), layer), torch.rand(3, 9, 11))
    assert trace.layers == ("0", "0 (2)")
    assert len(trace.points((0, 0), 2, layer="0 (2)").cells) == 81
    with pytest.raises(ValueError, match="depth must be 1 to 1, the deformable layers on the path to 0, got 2"):
        trace.points((0, 0), 2, layer="0")


def test_the_nearest_unit_is_found() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 4, 4), pliant.nn.DeformConv2d(3, 3, 3, padding=1))
    trace = Trace(model, torch.rand(3, 32, 48))
    assert trace.nearest((2.0, 2.0)) == (0, 0)
    assert trace.nearest((6.1, 13.9)) == (1, 3)
    assert trace.nearest((99.0, -5.0)) == (7, 0)
    assert trace.points(trace.nearest((6.1, 13.9)), 1).unit.tolist() == [6.0, 14.0]
