"""RoI pooling as a fixed sequence of standard operations, for formats without an operator for it (ONNX).

The number of cells in a bin depends on values, which a fixed sequence cannot represent. But a bin of complete cells is
a rectangle and remains one when it moves, and under bilinear interpolation its sum is the integral of the map between
its edges. This is a combination of the four corners of the map's running sum, each interpolated bilinearly, whatever
the size of the bin. The running sum is float64, since in float32 a small bin of a large map would lose its precision.

Samples (`authors_samples`) have a fixed number and are read line by line.

Symbols: R RoIs, T offset classes, Ph x Pw bins, N = R * T * Ph * Pw rows, C output channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.ops.roi_pool import bins, reference
from pliant.ops.roi_pool.reference import Pooling

_EDGES = {"whole_cells": bins.whole_cells_edges, "authors_whole_cells": bins.authors_whole_cells_edges}


class _Reads(NamedTuple):
    """Reads of the running sum on one axis: those at the far edge of a bin, minus those at the near edge."""

    cell: list[Tensor]  # each [R, T, Ph, Pw]
    weight: list[Tensor]
    outside: Tensor  # [R, T, Ph, Pw] bool: the bin lies outside the map


def roi_pool(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    """Like `reference.roi_pool`, without a check of the RoIs' values and without a gradient."""
    averages = _samples if pooling.rule == "authors_samples" else _rectangles
    lines = averages(input, rois, offset, pooling)
    channels = input.shape[1] // (pooling.group_size[0] * pooling.group_size[1])
    classes = 1 if offset is None else offset.shape[1] // 2
    height, width = pooling.output_size
    lines = lines.reshape(rois.shape[0], classes, height, width, channels // classes)
    return lines.permute(0, 1, 4, 2, 3).reshape(-1, channels, height, width).to(input.dtype)


def _samples(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    """Averages `[N, C / T]` of samples."""
    wide = torch.promote_types(input.dtype, torch.float32)
    table = reference.table_of(input, offset, pooling)
    moves = None if offset is None else offset.to(wide)
    reading = reference.reading_of(input, rois.to(wide), moves, pooling, table.shape[0])
    weight = reading.weight(reading.y.weight, reading.x.weight)
    total = table.new_zeros(1)
    for line in range(0, weight.shape[1], reading.x.weight.shape[-1]):
        entries = slice(line, line + reading.x.weight.shape[-1])
        total = total + torch.bmm(weight[:, None, entries], table[reading.row[:, entries]]).squeeze(1)
    return total


def _rectangles(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    """Averages `[N, C / T]` of rectangles of cells."""
    height, width = input.shape[2:]
    wide = torch.promote_types(input.dtype, torch.float32)
    rois = rois.to(wide)
    (bins_y, bins_x), (groups_y, groups_x) = pooling.output_size, pooling.group_size
    low_y, high_y, side_y = _EDGES[pooling.rule](rois[:, 2], rois[:, 4], pooling.spatial_scale, bins_y, height)
    low_x, high_x, side_x = _EDGES[pooling.rule](rois[:, 1], rois[:, 3], pooling.spatial_scale, bins_x, width)
    low_y, high_y = low_y[:, None, :, None], high_y[:, None, :, None]  # [R, 1, Ph, 1]
    low_x, high_x = low_x[:, None, None, :], high_x[:, None, None, :]
    count = (high_y - low_y).clamp(min=0) * (high_x - low_x).clamp(min=0)  # [R, 1, Ph, Pw]
    classes = 1
    if offset is not None:
        classes = offset.shape[1] // 2
        of_bin = reference.offsets_of_bins(offset.to(wide), pooling)  # [R, T, 2, Ph, Pw], x first
        move_x = of_bin[:, :, 0] * (side_x * pooling.gamma).view(-1, 1, 1, 1)
        move_y = of_bin[:, :, 1] * (side_y * pooling.gamma).view(-1, 1, 1, 1)
        # Clamp only moved edges again: onnxscript 0.7 gives the bounds of two clamps of the same value the same name.
        low_y, high_y = (low_y + move_y).clamp(0, height), (high_y + move_y).clamp(0, height)
        low_x, high_x = (low_x + move_x).clamp(0, width), (high_x + move_x).clamp(0, width)
    reads = _reads_of_whole_cells if offset is None else _reads
    y, x = reads(low_y, high_y, height), reads(low_x, high_x, width)

    table = _running_sums(input, groups_y * groups_x, classes)
    image = rois[:, 0].long().view(-1, 1, 1, 1)
    of_class = torch.arange(classes, device=rois.device).view(-1, 1, 1)
    group = reference.groups_of_bins(pooling, rois.device)  # [Ph, Pw]
    first = image * (height + 1) * (width + 1) * (groups_y * groups_x) * classes + group * classes + of_class
    total = table.new_zeros(1)
    for cell_y, weight_y in zip(y.cell, y.weight, strict=True):
        for cell_x, weight_x in zip(x.cell, x.weight, strict=True):
            cell = (cell_y * (width + 1) + cell_x) * (groups_y * groups_x) * classes
            total = total + table[(first + cell).flatten()] * (weight_y * weight_x).flatten().double()[:, None]
    # If a bin moved outside, its corners' sums are equal, but their difference may not be exactly zero.
    share = torch.where((count > 0) & ~(y.outside | x.outside), 1 / count.clamp(min=1), 0.0)
    share = share.expand(-1, classes, -1, -1).flatten().double()[:, None]
    return torch.where(share > 0, total * share, 0.0)


def _reads(low: Tensor, high: Tensor, size: int) -> _Reads:
    """The integral between edges in 0..size as reads of the running sum, `[R, T, Ph, Pw]` each. NaN stays NaN."""
    cells, weights = [], []
    for edge, sign in ((high, 1.0), (low, -1.0)):
        floor = edge.nan_to_num(0.0).floor().clamp(max=size - 1)
        fraction = edge - floor
        cells += [floor.long(), floor.long() + 1]
        weights += [sign * (1 - fraction), sign * fraction]
    return _Reads(cells, weights, high == low)


def _reads_of_whole_cells(low: Tensor, high: Tensor, size: int) -> _Reads:
    """Like `_reads`, for edges between cells, where half of the reads have no weight."""
    cells = [edge.nan_to_num(0.0) for edge in (high, low)]
    weights = [sign * (1 + edge - cell) for edge, cell, sign in zip((high, low), cells, (1.0, -1.0), strict=True)]
    return _Reads([cell.long() for cell in cells], weights, high == low)


def _running_sums(input: Tensor, groups: int, classes: int) -> Tensor:
    """Sums over all cells above and to the left: rows `[C / T]` by image, H + 1, W + 1, group and class, float64."""
    batch, channels, height, width = input.shape
    sums = F.pad(input.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    row_channels = channels // (groups * classes)
    by_class = sums.reshape(batch, classes, row_channels, groups, height + 1, width + 1)
    return by_class.permute(0, 4, 5, 3, 1, 2).reshape(-1, row_channels)
