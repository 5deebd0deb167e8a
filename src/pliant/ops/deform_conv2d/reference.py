"""Deformable convolution in plain PyTorch (equations 2 to 4 and 7), written for reading.

Symbols: B images, C input channels, O output channels, H x W input map, Ho x Wo output map, K = kh * kw taps,
G offset groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pliant.ops import bilinear

_BORDERS = {"paper": bilinear.zero_padded, "authors": bilinear.cut_and_replicated}


class Geometry(NamedTuple):
    """How the regular grid of a convolution lies on its input. Pairs are (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    border: str = "paper"


class _Samples(NamedTuple):
    """Where every tap of every output cell reads, for each offset group: one row per (b, ho, wo, k, g)."""

    row: Tensor  # [N, 4] rows of the table
    y: bilinear.Axis  # [N, 2]
    x: bilinear.Axis  # [N, 2]
    mask: Tensor  # [N, 1], one where there is no mask

    @property
    def weight(self) -> Tensor:  # [N, 4]
        return _outer(self.y.weight, self.x.weight) * self.mask


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: Geometry,
    weighted_rows: Callable[[Tensor, Tensor, Tensor], Tensor] = bilinear.weighted_rows,
) -> Tensor:
    """y(p0) = sum_n w(p_n) m_n x(p0 + p_n + dp_n): gather the columns, then one matrix product per group."""
    wide = compute_dtype(input)
    batch, height, width = offset.shape[0], *offset.shape[2:]
    samples, table = _samples(input.to(wide), offset.to(wide), mask, weight, geometry)
    columns = weighted_rows(table, samples.row, samples.weight)  # [N, C / G]
    out = torch.bmm(_columns_by_group(columns, input, weight), _matrix(weight.to(wide), input).mT)
    out = out.permute(1, 0, 2).reshape(batch, height, width, weight.shape[0])
    if bias is not None:
        out = out + bias.to(wide)
    return out.permute(0, 3, 1, 2).contiguous().to(input.dtype)


def deform_conv2d_backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of input, offset, weight and mask (equation 7 and the product rule)."""
    wide = compute_dtype(input)
    offset_groups = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])
    groups = input.shape[1] // weight.shape[1]
    samples, table = _samples(input.to(wide), offset.to(wide), mask, weight, geometry)
    matrix = _matrix(weight.to(wide), input)  # [groups, O / groups, K * C / groups]
    grad_out = grad.to(wide).permute(0, 2, 3, 1).reshape(-1, groups, weight.shape[0] // groups).transpose(0, 1)

    columns = bilinear.weighted_rows(table, samples.row, samples.weight)
    grad_matrix = torch.bmm(grad_out.mT, _columns_by_group(columns, input, weight))
    grad_weight = grad_matrix.reshape(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)

    grad_columns = torch.bmm(grad_out, matrix)  # [groups, B * Ho * Wo, K * C / groups]
    taps = weight.shape[2] * weight.shape[3]
    grad_columns = grad_columns.reshape(groups, -1, taps, weight.shape[1]).permute(1, 2, 0, 3)
    grad_columns = grad_columns.reshape(-1, input.shape[1] // offset_groups)  # [N, C / G]

    grad_table = bilinear.weighted_rows_grad_table(grad_columns, table.shape[0], samples.row, samples.weight)
    dots = bilinear.weighted_rows_grad_weight(grad_columns, table, samples.row)  # [N, 4]
    grad_y = (dots * _outer(samples.y.slope, samples.x.weight)).sum(1) * samples.mask[:, 0]
    grad_x = (dots * _outer(samples.y.weight, samples.x.slope)).sum(1) * samples.mask[:, 0]
    grad_offset = _to_maps(torch.stack((grad_y, grad_x), dim=-1), taps, offset)
    grad_mask = None
    if mask is not None:
        sampled = (dots * _outer(samples.y.weight, samples.x.weight)).sum(1, keepdim=True)
        grad_mask = _to_maps(sampled, taps, mask)
    return (
        bilinear.map_of(grad_table, input.shape).to(input.dtype),
        grad_offset,
        grad_weight.contiguous().to(weight.dtype),
        grad_mask,
    )


def compute_dtype(input: Tensor) -> torch.dtype:
    """The dtype to compute in. Half types have too few bits for positions of hundreds of cells."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _samples(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, geometry: Geometry
) -> tuple[_Samples, Tensor]:
    batch, channels, height, width = input.shape
    out_height, out_width = offset.shape[2:]
    kernel_height, kernel_width = weight.shape[2:]
    taps = kernel_height * kernel_width
    groups = offset.shape[1] // (2 * taps)

    def grid(count: int, axis: int) -> Tensor:
        return torch.arange(count, device=input.device) * geometry.stride[axis] - geometry.padding[axis]

    tap = torch.arange(taps, device=input.device)
    shift = offset.reshape(batch, groups, taps, 2, out_height, out_width).permute(0, 4, 5, 2, 1, 3)
    y = (
        grid(out_height, 0).view(-1, 1, 1, 1)
        + (tap.div(kernel_width, rounding_mode="floor") * geometry.dilation[0]).view(-1, 1)
        + shift[..., 0]
    )  # [B, Ho, Wo, K, G]
    x = grid(out_width, 1).view(-1, 1, 1) + (tap % kernel_width * geometry.dilation[1]).view(-1, 1) + shift[..., 1]
    axis_y = _BORDERS[geometry.border](y, height)
    axis_x = _BORDERS[geometry.border](x, width)

    image = torch.arange(batch, device=input.device).view(-1, 1, 1, 1, 1, 1, 1)
    group = torch.arange(groups, device=input.device).view(-1, 1, 1)
    cell = (image * height + axis_y.cell.unsqueeze(-1)) * width + axis_x.cell.unsqueeze(-2)
    inside = axis_y.inside.unsqueeze(-1) & axis_x.inside.unsqueeze(-2)
    table = bilinear.rows_of(input, channels // groups)
    index = torch.where(inside, cell * groups + group, table.shape[0] - 1)  # [B, Ho, Wo, K, G, 2, 2]
    if mask is None:
        modulation = input.new_ones(1, 1)
    else:
        modulation = mask.to(input.dtype).reshape(batch, groups, taps, out_height, out_width)
        modulation = modulation.permute(0, 3, 4, 2, 1).reshape(-1, 1)
    flat_y, flat_x = (bilinear.Axis(*(field.reshape(-1, 2) for field in axis)) for axis in (axis_y, axis_x))
    return _Samples(index.reshape(-1, 4), flat_y, flat_x, modulation), table


def _outer(y: Tensor, x: Tensor) -> Tensor:  # [N, 2], [N, 2] -> [N, 4]
    return (y.unsqueeze(-1) * x.unsqueeze(-2)).flatten(1)


def _columns_by_group(columns: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """`[N, C / G]` to `[groups, B * Ho * Wo, K * C / groups]`."""
    groups = input.shape[1] // weight.shape[1]
    taps = weight.shape[2] * weight.shape[3]
    by_group = columns.reshape(-1, taps, groups, weight.shape[1]).permute(2, 0, 1, 3)
    return by_group.reshape(groups, -1, taps * weight.shape[1])


def _matrix(weight: Tensor, input: Tensor) -> Tensor:
    """`[O, C / groups, kh, kw]` to `[groups, O / groups, K * C / groups]`, channels last as the columns are."""
    groups = input.shape[1] // weight.shape[1]
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)


def _to_maps(values: Tensor, taps: int, like: Tensor) -> Tensor:
    """Arrange rows (b, ho, wo, k, g) of n values as maps with channels (g, k, n), the layout of offset and mask."""
    batch, channels, height, width = like.shape
    n = values.shape[1]
    by_cell = values.reshape(batch, height, width, taps, channels // (taps * n), n)
    return by_cell.permute(0, 4, 3, 5, 1, 2).reshape(like.shape).contiguous().to(like.dtype)
