"""Deformable aggregation in plain PyTorch (Wang et al. 2023, equation 2), written to be read.

Legend: N images, H x W input cells, Ho x Wo output cells, G groups of D channels, P points of a group and output cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pliant.ops import bilinear
from pliant.ops.deform_aggregate.geometry import Geometry


class _Samples(NamedTuple):
    """Where every point of every output cell and group reads; a line is a (n, ho, wo, g)."""

    row: Tensor  # [N * Ho * Wo * G, P * 4] rows of the table
    y: bilinear.Axis  # [N, Ho, Wo, G, P, 2]
    x: bilinear.Axis


def deform_aggregate(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """y(p0) = sum_k m_k x(p0 + scale * (p_k + dp_k)), group by group: `[N, Ho, Wo, G * D]`."""
    table, samples, factors = _read(input, offset, mask, geometry)
    weight = _outer(samples.y.weight, samples.x.weight) * factors
    rows = bilinear.weighted_rows(table, samples.row, weight.flatten(4).flatten(0, 3))
    return rows.reshape(*offset.shape[:3], input.shape[3]).to(input.dtype)


def deform_aggregate_backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to input, offset and mask."""
    table, samples, factors = _read(input, offset, mask, geometry)
    lines = grad.to(table.dtype).reshape(-1, table.shape[1])
    weight = (_outer(samples.y.weight, samples.x.weight) * factors).flatten(4).flatten(0, 3)
    grad_table = bilinear.weighted_rows_grad_table(lines, table.shape[0], samples.row, weight)
    dots = bilinear.weighted_rows_grad_weight(lines, table, samples.row)
    dots = dots.reshape(*mask.shape, 2, 2)
    grad_mask = (dots * _outer(samples.y.weight, samples.x.weight)).sum((-2, -1))
    dots = dots * factors
    grad_y = (dots * _outer(samples.y.slope, samples.x.weight)).sum((-2, -1))
    grad_x = (dots * _outer(samples.y.weight, samples.x.slope)).sum((-2, -1))
    grad_offset = torch.stack((grad_x, grad_y), dim=-1) * geometry.offset_scale
    return (
        grad_table[:-1].reshape(input.shape).to(input.dtype),
        grad_offset.to(offset.dtype),
        grad_mask.to(mask.dtype),
    )


def positions(offset: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Where points lie in the input, in cells: y and x `[N, Ho, Wo, G, P]`."""
    taps = torch.tensor(geometry.taps(), dtype=offset.dtype, device=offset.device)  # [P, 2]
    moved = offset * geometry.offset_scale
    rows = torch.arange(offset.shape[1], device=offset.device) * geometry.stride[0]
    columns = torch.arange(offset.shape[2], device=offset.device) * geometry.stride[1]
    y = rows.view(-1, 1, 1, 1).to(offset.dtype) + taps[:, 1] + moved[..., 1]
    x = columns.view(-1, 1, 1).to(offset.dtype) + taps[:, 0] + moved[..., 0]
    return y, x


def compute_dtype(input: Tensor) -> torch.dtype:
    """Half types are widened, as in deformable convolution."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _read(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> tuple[Tensor, _Samples, Tensor]:
    """The input as a table with a last row of zeros, what is read of it, and the mask `[N, Ho, Wo, G, P, 1, 1]`."""
    wide = compute_dtype(input)
    images, height, width, channels = input.shape
    groups = mask.shape[3]
    table = input.to(wide).reshape(-1, channels // groups)  # a row is a group of a cell
    table = torch.cat((table, table.new_zeros(1, channels // groups)))
    position_y, position_x = positions(offset.to(wide), geometry)
    y, x = bilinear.zero_padded(position_y, height), bilinear.zero_padded(position_x, width)

    image = torch.arange(images, device=input.device).view(-1, 1, 1, 1, 1, 1, 1)
    group = torch.arange(groups, device=input.device).view(-1, 1, 1, 1)
    cell = (image * height + y.cell.unsqueeze(-1)) * width + x.cell.unsqueeze(-2)  # [N, Ho, Wo, G, P, 2, 2]
    inside = y.inside.unsqueeze(-1) & x.inside.unsqueeze(-2)
    row = torch.where(inside, cell * groups + group, table.shape[0] - 1)
    return table, _Samples(row.flatten(4).flatten(0, 3), y, x), mask.to(wide)[..., None, None]


def _outer(y: Tensor, x: Tensor) -> Tensor:  # [..., 2], [..., 2] -> [..., 2, 2]
    return y.unsqueeze(-1) * x.unsqueeze(-2)
