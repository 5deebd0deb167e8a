from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.introspect import EffectiveDilation
from pliant.nn import DeformConv2d


def scaled(
    kernel: tuple[int, int], dilation: tuple[int, int], factor: tuple[float, float], groups: int
) -> DeformConv2d:
    """A layer whose offsets stretch its grid about its first tap, by the factors times the number of the group."""
    layer = DeformConv2d(4, 4, kernel, padding=2, dilation=dilation, offset_groups=groups)
    offset = torch.zeros(groups, *kernel, 2)
    for group in range(groups):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                stretch = (group + 1) * torch.tensor(factor) - 1
                offset[group, i, j] = stretch * torch.tensor([i * dilation[0], j * dilation[1]])
    layer.offset_conv.bias.data = offset.flatten()
    return layer


def only(found: dict[str, dict[str, object]], group: str) -> object:
    return next(iter(found.values()))[group]


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_without_offsets_it_is_the_dilation_exactly(dilation: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), DeformConv2d(4, 4, 3, 2, dilation, dilation, offset_groups=2))
    found = EffectiveDilation(model)
    for size in (20, 31):
        found.update(torch.rand(3, size, 24), torch.tensor([[0.0, 0, 9, 9]]))
    (sizes,) = found.compute().values()
    assert sizes["small"][:2] == (dilation, 0)
    assert sizes["background"][:2] == (dilation, 0)
    assert sizes["small"].number == 2 * 9  # centres at pixels 0.5, 4.5 and 8.5
    assert sizes["background"].number == 5 * 6 + 8 * 6 - 2 * 9
    assert sizes["large"].number == 0
    assert math.isnan(sizes["large"].mean)


def test_scaled_offsets_scale_it() -> None:
    found = EffectiveDilation(scaled((3, 3), (2, 2), (1.75, 1.75), groups=1))
    found.update(torch.rand(4, 9, 8), torch.zeros(0, 4))
    assert only(found.compute(), "background") == (3.5, 0, 9 * 8)


def test_pairs_of_an_oblong_kernel_and_groups_are_averaged() -> None:
    found = EffectiveDilation(scaled((3, 2), (2, 1), (2, 3), groups=2))
    found.update(torch.rand(4, 9, 8), torch.zeros(0, 4))
    # 4 pairs down of 2 * 2 cells and 3 to the right of 1 * 3 cells; in the second group all are twice as far.
    assert only(found.compute(), "background").mean == pytest.approx(1.5 * (4 * 4 + 3 * 3) / 7)


def test_a_place_belongs_to_the_smallest_object_there() -> None:
    found = EffectiveDilation(DeformConv2d(3, 3, 3, padding=1), areas=(5, 20))
    boxes = torch.tensor([[0.0, 0, 10, 4], [1, 1, 3, 3], [6, 0, 10, 2.5]])  # 40, 4 and 10 pixels
    found.update(torch.rand(3, 8, 12), boxes)
    (sizes,) = found.compute().values()
    counts = {name: spread.number for name, spread in sizes.items()}
    assert counts == {"small": 4, "medium": 8, "large": 40 - 4 - 8, "background": 96 - 40}


def test_streamed_moments_are_those_of_all_values() -> None:
    model = nn.Sequential(DeformConv2d(3, 4, 3, padding=1), DeformConv2d(4, 4, 3, padding=2, dilation=2))
    for layer in model:
        nn.init.normal_(layer.offset_conv.weight, std=0.5)
    found = EffectiveDilation(model)
    values: list[Tensor] = []
    for _ in range(3):
        image = torch.rand(3, 7, 9)
        found.update(image, torch.zeros(0, 4))
        with torch.no_grad():
            offset = model[1].offset_conv(model[0](image[None]))[0].double().view(3, 3, 2, 7, 9)
        grid = (
            offset
            + 2 * torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), 2)[..., None, None]
        )
        pairs = [(grid[i, j], grid[i + 1, j]) for i in range(2) for j in range(3)]
        pairs += [(grid[i, j], grid[i, j + 1]) for i in range(3) for j in range(2)]
        values.append(sum((a - b).square().sum(0).sqrt() for a, b in pairs) / 12)
    spread = found.compute()["1"]["background"]
    assert spread.number == 3 * 63
    assert spread.mean == pytest.approx(float(torch.stack(values).mean()), rel=1e-6)
    assert spread.std == pytest.approx(float(torch.stack(values).std(correction=0)), rel=1e-6)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="areas must be positive and increase"):
        EffectiveDilation(nn.Identity(), areas=(2, 1))
    with pytest.raises(ValueError, match=r"boxes must have shape \[N, 4\], got \[0\]"):
        EffectiveDilation(DeformConv2d(3, 3, 3)).update(torch.rand(3, 9, 9), torch.zeros(0))
    with pytest.raises(ValueError, match="no deformable convolution with more than one tap ran"):
        EffectiveDilation(pliant.deform(nn.Conv2d(3, 3, 1), "")).update(torch.rand(3, 9, 9), torch.zeros(0, 4))
