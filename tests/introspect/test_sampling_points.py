from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pliant.introspect import draw, sampling_points
from pliant.nn import DeformConv2d


def stack(**second: object) -> nn.Sequential:
    return nn.Sequential(
        DeformConv2d(3, 4, 3, stride=2, padding=1),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
        DeformConv2d(4, 4, (3, 2), padding=(2, 1), dilation=(2, 1), **second),
    )


def shake(model: nn.Module, size: float) -> None:
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.offset_conv.weight, std=size)
            nn.init.normal_(module.offset_conv.bias, std=size)


def test_layers_without_offsets_read_the_regular_grid_exactly() -> None:
    model = nn.Sequential(*(DeformConv2d(3, 3, 3, padding=2, dilation=2) for _ in range(3)))
    found = sampling_points(model, torch.rand(3, 16, 24), (7, 5), depth=3)
    steps = [2 * a + 2 * b + 2 * c for a, b, c in itertools.product((-1, 0, 1), repeat=3)]
    expected = {(7.0 + y, 5.0 + x) for y in steps for x in steps}
    assert found.cells.shape == (729, 2)
    assert {tuple(point) for point in found.cells.tolist()} == expected
    assert torch.equal(found.pixels, found.cells + 0.5)
    assert found.unit.tolist() == [7.5, 5.5]


def test_a_constant_offset_moves_every_level() -> None:
    model = nn.Sequential(*(DeformConv2d(3, 3, 1) for _ in range(2)))
    for layer in model:
        layer.offset_conv.bias.data = torch.tensor([0.5, -1.25])
    found = sampling_points(model, torch.rand(3, 8, 8), (4, 4), depth=2)
    assert found.cells.tolist() == [[5.0, 1.5]]


def bilinear(plane: Tensor, y: float, x: float) -> float:
    y, x = min(max(y, 0), plane.shape[0] - 1), min(max(x, 0), plane.shape[1] - 1)
    total = 0.0
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            total += max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x)) * plane[row, column].item()
    return total


@pytest.mark.parametrize("group", [0, 1])
def test_against_a_composition_in_loops(group: int) -> None:
    model = nn.Sequential(
        DeformConv2d(4, 4, 3, stride=2, padding=1, offset_groups=2), *list(stack(offset_groups=2))[1:]
    )
    shake(model, 0.3)
    image, at = torch.rand(4, 15, 18), (2, 3)
    found = sampling_points(model, image, at, depth=2, offset_group=group)
    with torch.no_grad():
        low, high = model[0], model[2]
        low_offset = low.offset_conv(image[None])[0].double()
        high_offset = high.offset_conv(model[1](low(image[None])))[0].double()
    expected = []
    for k in range(6):
        i, j = divmod(k, 2)
        channel = 2 * (group * 6 + k)
        y = at[0] - 2 + 2 * i + high_offset[channel, at[0], at[1]].item()
        x = at[1] - 1 + j + high_offset[channel + 1, at[0], at[1]].item()
        for n in range(9):
            a, b = divmod(n, 3)
            channel = 2 * (group * 9 + n)
            dy, dx = bilinear(low_offset[channel], y, x), bilinear(low_offset[channel + 1], y, x)
            expected.append((2 * y - 1 + a + dy, 2 * x - 1 + b + dx))
    torch.testing.assert_close(found.cells, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.unit.tolist() == [2 * 2 + 0.5, 2 * 2.5 + 0.5]
    torch.testing.assert_close(found.pixels, found.cells + 0.5)


def test_the_model_is_left_as_it_was() -> None:
    model = stack()
    model[1].eval()
    image = torch.rand(3, 12, 12)
    before = image.clone()
    sampling_points(nn.Sequential(nn.ReLU6(inplace=True), nn.Threshold(0.5, 0, inplace=True), model), image, (0, 0), 2)
    assert torch.equal(image, before)
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
    assert not any(module._forward_hooks for module in model.modules())


def test_wrong_arguments_are_named() -> None:
    image = torch.rand(3, 12, 12)
    with pytest.raises(ValueError, match="depth must be 1 to 2"):
        sampling_points(stack(), image, (0, 0), depth=3)
    with pytest.raises(ValueError, match=r"at must lie in the layer's map of \[6, 7\], got \[6, 0\]"):
        sampling_points(stack(), image, (6, 0), depth=1)
    with pytest.raises(ValueError, match="offset_group must be below 1"):
        sampling_points(stack(), image, (0, 0), depth=1, offset_group=1)
    with pytest.raises(ValueError, match="layer must be one of 0, 2, got '3'"):
        sampling_points(stack(), image, (0, 0), depth=1, layer="3")
    with pytest.raises(ValueError, match="no deformable convolution ran"):
        sampling_points(nn.Conv2d(3, 3, 1), image, (0, 0), depth=1)
    with pytest.raises(ValueError, match=r"image must have shape \[C, H, W\], got \[1, 3, 12, 12\]"):
        sampling_points(stack(), image[None], (0, 0), depth=1)
    shuffled = nn.Sequential(DeformConv2d(3, 4, 1), nn.PixelShuffle(2), DeformConv2d(1, 3, 1))
    with pytest.raises(ValueError, match=r"2 cannot be followed to depth 2 through aten.pixel_shuffle.default in 1"):
        sampling_points(shuffled, image, (0, 0), depth=2)


def test_pictures_are_written(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    found = sampling_points(stack(), image.float(), (1, 1), depth=2)
    draw.sampling(tmp_path / "sampling.png", [("a", image, [found, found])], ("before", "after"))
    masks = [torch.randint(0, 3, (16, 24))]
    draw.segmentations(tmp_path / "masks.svg", [image], [("truth", masks)], ("a", "b", "c"))
    draw.bars(tmp_path / "bars.pdf", [("plain", 1.0), ("deformable", math.pi)], "mIoU")
    assert (tmp_path / "sampling.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "masks.svg").read_text()
    assert (tmp_path / "bars.pdf").read_bytes().startswith(b"%PDF")
    draw.segmentations(tmp_path / "many.svg", [image], [("truth", masks)], [f"class {i}" for i in range(40)])
    colours = set(re.findall("fill: (#[0-9a-f]{6})", (tmp_path / "many.svg").read_text()))
    assert len(colours) >= 40  # those of the legend
