"""Multi-scale deformable attention in plain PyTorch (Zhu et al. 2021, equation 3), written to be read.

Legend: N images, S rows of the value (the cells of all levels), M heads, D channels of a head, Q queries, L levels,
P points that a head samples in a level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pliant.ops import bilinear
from pliant.ops.ms_deform_attn.levels import Level


class _Samples(NamedTuple):
    """Where every point of every query and head reads; a line is a (n, q, m)."""

    row: Tensor  # [N * Q * M, L * P * 4] rows of the table
    y: bilinear.Axis  # [N, Q, M, L, P, 2]
    x: bilinear.Axis
    sides: Tensor  # [L, 1, 2] cells (width, height) by which locations are multiplied


def ms_deform_attn(value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor) -> Tensor:
    """out(q) = sum_l sum_p weights(q, l, p) value_l(locations(q, l, p)), head by head: `[N, Q, M * D]`."""
    table, samples, attention = _read(value, levels, locations, weights)
    weight = _outer(samples.y.weight, samples.x.weight) * attention
    rows = bilinear.weighted_rows(table, samples.row, weight.flatten(3).flatten(0, 2))
    return rows.reshape(*locations.shape[:2], value.shape[2] * value.shape[3]).to(value.dtype)


def ms_deform_attn_backward(
    grad: Tensor, value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to value, locations and weights."""
    table, samples, attention = _read(value, levels, locations, weights)
    lines = grad.to(table.dtype).reshape(-1, value.shape[3])
    weight = (_outer(samples.y.weight, samples.x.weight) * attention).flatten(3).flatten(0, 2)
    grad_table = bilinear.weighted_rows_grad_table(lines, table.shape[0], samples.row, weight)
    dots = bilinear.weighted_rows_grad_weight(lines, table, samples.row)
    dots = dots.reshape(*locations.shape[:-1], 2, 2)
    grad_weights = (dots * _outer(samples.y.weight, samples.x.weight)).sum((-2, -1))
    dots = dots * attention
    grad_y = (dots * _outer(samples.y.slope, samples.x.weight)).sum((-2, -1))
    grad_x = (dots * _outer(samples.y.weight, samples.x.slope)).sum((-2, -1))
    grad_locations = torch.stack((grad_x, grad_y), dim=-1) * samples.sides
    return (
        grad_table[:-1].reshape(value.shape).to(value.dtype),
        grad_locations.to(locations.dtype),
        grad_weights.to(weights.dtype),
    )


def compute_dtype(value: Tensor) -> torch.dtype:
    """Half types are widened, as in deformable convolution."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _read(value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor) -> tuple[Tensor, _Samples, Tensor]:
    """The value as a table with a last row of zeros, what is read of it, and the weights `[N, Q, M, L, P, 1, 1]`."""
    wide = compute_dtype(value)
    images, rows, heads, channels = value.shape
    table = value.to(wide).reshape(-1, channels)
    table = torch.cat((table, table.new_zeros(1, channels)))
    sides = torch.tensor([[level.width, level.height] for level in levels], dtype=wide, device=value.device)
    position = locations.to(wide) * sides.unsqueeze(1) - 0.5
    axes_y = [bilinear.zero_padded(position[:, :, :, i, :, 1], level.height) for i, level in enumerate(levels)]
    axes_x = [bilinear.zero_padded(position[:, :, :, i, :, 0], level.width) for i, level in enumerate(levels)]
    y, x = (bilinear.Axis(*(torch.stack(each, 3) for each in zip(*axes, strict=True))) for axes in (axes_y, axes_x))

    starts = torch.tensor([level.start for level in levels], device=value.device).view(-1, 1, 1, 1)
    widths = torch.tensor([level.width for level in levels], device=value.device).view(-1, 1, 1, 1)
    image = torch.arange(images, device=value.device).view(-1, 1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(-1, 1, 1, 1, 1)
    cell = starts + y.cell.unsqueeze(-1) * widths + x.cell.unsqueeze(-2)  # [N, Q, M, L, P, 2, 2]
    inside = y.inside.unsqueeze(-1) & x.inside.unsqueeze(-2)
    row = torch.where(inside, (image * rows + cell) * heads + head, table.shape[0] - 1)
    samples = _Samples(row.flatten(3).flatten(0, 2), y, x, sides.unsqueeze(1))
    return table, samples, weights.to(wide)[..., None, None]


def _outer(y: Tensor, x: Tensor) -> Tensor:  # [..., 2], [..., 2] -> [..., 2, 2]
    return y.unsqueeze(-1) * x.unsqueeze(-2)
