"""RoIs at the edges of the map: one that touches the map pools what it touches, whatever the rounding."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from cases import edge_rois
from random_calls import Call, assert_reference_agrees, generator
from torch import Tensor

from pliant import ops
from pliant.ops.roi_pool import decomposed
from pliant.ops.roi_pool.reference import Pooling

SCALES = (1.0, 1 / 16, 1 / 4, 0.3, 1 / 7, 2.0)
SIZES = ((4, 7), (1, 30), (11, 1))


def touches(rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Whether RoIs and map have more than an edge in common, in exact numbers, `[R]`."""
    height, width = (length / Fraction(scale) for length in size)
    return torch.tensor([x1 > 0 and y1 > 0 and x0 < width and y0 < height for _, x0, y0, x1, y1 in rois.tolist()])


def outside(rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Whether RoIs and map do not even have an edge in common, `[R]`."""
    ends = rois.new_tensor([size[1], size[0]]) / scale
    return ((rois[:, 3:] < 0) | (rois[:, 1:3] > ends * (1 + 1e-6))).any(dim=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_roi_pools_the_map_where_it_touches_it(scale: float, size: tuple[int, int], dtype: torch.dtype) -> None:
    rois = edge_rois(size, scale, dtype)
    inside, beyond = touches(rois, size, scale), outside(rois, size, scale)
    assert inside.any()
    assert beyond.any()
    for bins in (1, 3):
        ones = torch.ones(1, bins**2, *size, dtype=dtype)
        for pooled in (
            ops.roi_pool(ones, rois, bins, scale),
            ops.ps_roi_pool(ones, rois, bins, scale),
            ops.deform_ps_roi_pool(ones, rois, torch.zeros(len(rois), 2, 1, 1, dtype=dtype), bins, scale),
        ):
            most = pooled.flatten(1).amax(dim=1)
            torch.testing.assert_close(most[inside], torch.ones_like(most[inside]))
            assert most[beyond].count_nonzero() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", SCALES)
def test_exported_pooling_has_the_same_edges(scale: float, size: tuple[int, int]) -> None:
    rois = edge_rois(size, scale)
    image = torch.randn(1, 2, *size)
    pooled = decomposed.roi_pool(image, rois, None, Pooling((2, 3), (1, 1), scale, 0.0, "whole_cells", 1))
    torch.testing.assert_close(pooled, ops.roi_pool(image, rois, (2, 3), scale))


@pytest.mark.parametrize("length", [0.0, 0.2, 0.45])
def test_slivers_read_the_row_or_column_that_they_lie_in(length: float) -> None:
    height, width, scale = 5, 7, 1 / 16
    last_x, last_y = width - length, height - length
    slivers = [(0, 2, length, 4), (last_x, 2, width, 4), (2, 0, 4, length), (2, last_y, 4, height)]
    rois = torch.tensor([[0, *(corner / scale for corner in sliver)] for sliver in slivers])
    image = torch.zeros(1, 1, height, width, requires_grad=True)
    reads = [torch.autograd.grad(ops.roi_pool(image, roi[None], 1, scale).sum(), image)[0][0, 0] for roi in rois]
    expected = [(slice(2, 4), 0), (slice(2, 4), width - 1), (0, slice(2, 4)), (height - 1, slice(2, 4))]
    for got, where in zip(reads, expected, strict=True):
        want = torch.zeros(height, width)
        want[where] = 0.5
        assert torch.equal(got, want)


@pytest.mark.parametrize("scale", SCALES)
def test_rois_that_round_into_the_map_have_the_bins_of_equation_5(scale: float) -> None:
    width, bins = 30, 4
    rois = edge_rois((1, width), scale)
    ends = torch.tensor([width, 1]) / scale
    rois = rois[((rois[:, 1:3] >= 0) & (rois[:, 3:] <= ends)).all(dim=1)]
    image = torch.arange(1.0, width + 1).view(1, 1, 1, width)
    pooled = ops.roi_pool(image, rois, (1, bins), scale)[:, 0, 0]
    compared = 0
    for roi, got in zip(rois, pooled.tolist(), strict=True):
        first, end = (math.floor(corner + 0.5) for corner in (roi[[1, 3]] * scale).tolist())
        if first == width:  # no cell of the map by equation 5 alone
            continue
        length = max(end - first, 1)
        for i, value in enumerate(got):
            cells = range(first + math.floor(i * length / bins), first + math.ceil((i + 1) * length / bins))
            assert value == pytest.approx(sum(cell + 1 for cell in cells) / len(cells), rel=1e-6)
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("scale", SCALES)
def test_values_and_gradients_at_the_edges_are_the_references(scale: float) -> None:
    random, size = generator(3), (4, 7)
    rois = edge_rois(size, scale)
    tensors = {
        "input": torch.randn(1, 2 * 6, *size, generator=random),
        "rois": rois,
        "offset": torch.randn(len(rois), 4, 3, 2, generator=random),
    }
    options = {"output_size": (3, 2), "spatial_scale": scale, "gamma": 0.3}
    assert_reference_agrees(Call(ops.deform_ps_roi_pool, tensors, options))
