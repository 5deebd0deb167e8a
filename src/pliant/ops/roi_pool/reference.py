"""RoI pooling in plain PyTorch, plain and deformable, position-sensitive or not (equations 5, 6 and 8).

One computation serves all four functions: RoI pooling is position-sensitive pooling with one group, and plain pooling
is deformable pooling without offsets. Only the positions at which bins sample differ (`bins.py`).

Symbols: B images, R RoIs, C output channels, Gh x Gw channel groups, Ph x Pw bins, T offset classes (each moves
C / T consecutive output channels), E entries: cells that one bin reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pliant.ops import bilinear
from pliant.ops.roi_pool import bins


class Pooling(NamedTuple):
    """The arguments that are not tensors. Pairs are (vertical, horizontal)."""

    output_size: tuple[int, int]
    group_size: tuple[int, int]
    spatial_scale: float
    gamma: float
    rule: str  # "whole_cells", "authors_whole_cells" or "authors_samples"
    sample_per_part: int


class Reading(NamedTuple):
    """What the bins of some RoIs read, as N = R * T * Ph * Pw rows."""

    row: Tensor  # [N, E] rows of the table
    y: bilinear.Axis  # [R, T, Ph, Pw, Ey], cells and weights on the vertical axis
    x: bilinear.Axis  # [R, T, Ph, Pw, Ex]
    share: Tensor  # [R, 1 or T, Ph, Pw] one over the number of positions, 0 for an empty bin
    moves: tuple[Tensor, Tensor]  # [R] cells an offset of one moves, per axis

    def weight(self, y: Tensor, x: Tensor) -> Tensor:  # [N, E]
        share = self.share[..., None, None]
        outer = torch.where(share > 0, y.unsqueeze(-1) * x.unsqueeze(-2) * share, 0.0)  # NaN shows where cells are read
        return outer.flatten(4).flatten(0, 3)


def roi_pool(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    """Pool `[B, C * Gh * Gw, H, W]` at rois `[R, 5]` with offset `[R, 2 * T, Qh, Qw]` to `[R, C, Ph, Pw]`."""
    table = table_of(input, offset, pooling)
    pooled = [
        bilinear.weighted_rows(table, reading.row, reading.weight(reading.y.weight, reading.x.weight))
        for _, reading in _readings(input, rois, offset, pooling, table.shape[0])
    ]
    rows = torch.cat(pooled) if pooled else table.new_zeros(0, table.shape[1])
    channels = input.shape[1] // (pooling.group_size[0] * pooling.group_size[1])
    height, width = pooling.output_size
    rows = rows.reshape(rois.shape[0], channels // table.shape[1], height, width, table.shape[1])
    return rows.permute(0, 1, 4, 2, 3).reshape(-1, channels, height, width).contiguous().to(input.dtype)


def roi_pool_backward(
    grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling
) -> tuple[Tensor, Tensor | None]:
    """Gradients of input and offset (equation 8)."""
    table = table_of(input, offset, pooling)
    classes = 1 if offset is None else offset.shape[1] // 2
    height, width = pooling.output_size
    lines = grad.to(table.dtype).reshape(grad.shape[0], classes, table.shape[1], height, width)
    lines = lines.permute(0, 1, 3, 4, 2)  # [R, T, Ph, Pw, C / T]
    grad_table = torch.zeros_like(table)
    grad_offsets = []
    for chunk, reading in _readings(input, rois, offset, pooling, table.shape[0]):
        chunk_grad = lines[chunk].reshape(-1, table.shape[1])
        weight = reading.weight(reading.y.weight, reading.x.weight)
        grad_table = grad_table + bilinear.weighted_rows_grad_table(chunk_grad, table.shape[0], reading.row, weight)
        if offset is not None:
            dots = bilinear.weighted_rows_grad_weight(chunk_grad, table, reading.row)
            grad_offsets.append(_offset_grad(dots, reading, offset.shape[2:]))
    grad_map = bilinear.map_of(_ungrouped(grad_table, pooling, classes), input.shape).to(input.dtype)
    if offset is None:
        return grad_map, None
    return grad_map, torch.cat(grad_offsets).to(offset.dtype) if grad_offsets else torch.zeros_like(offset)


def _offset_grad(dots: Tensor, reading: Reading, parts: Sequence[int]) -> Tensor:
    """What the bins say of offsets `[R, 2 * T, Qh, Qw]`, x first; several bins may share one part."""
    rois, classes, height, width = reading.y.weight.shape[:4]
    grad_y = (dots * reading.weight(reading.y.slope, reading.x.weight)).sum(1).view(rois, classes, height, width)
    grad_x = (dots * reading.weight(reading.y.weight, reading.x.slope)).sum(1).view(rois, classes, height, width)
    moved_y, moved_x = (moves.view(-1, 1, 1, 1) for moves in reading.moves)
    moved = torch.stack((grad_x * moved_x, grad_y * moved_y), dim=2)  # [R, T, 2, Ph, Pw]
    row = _part(height, parts[0], dots.device)
    column = _part(width, parts[1], dots.device)
    part = (row.unsqueeze(1) * parts[1] + column).flatten()
    total = dots.new_zeros(rois, 2 * classes, parts[0] * parts[1])
    total = total.index_add(2, part, moved.reshape(rois, 2 * classes, height * width))
    return total.view(rois, 2 * classes, parts[0], parts[1])


def _readings(
    input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling, rows: int
) -> Iterator[tuple[slice, Reading]]:
    """Yield the RoIs in chunks whose entries fit in memory."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    rois = rois.to(wide)
    check_rois(rois, input.shape[0])
    classes = 1 if offset is None else offset.shape[1] // 2
    height, width = pooling.output_size
    lines = max(1, classes * height * width)
    run = max(1, _ENTRIES_AT_ONCE // (lines * _ENTRIES_EXPECTED))
    for start in range(0, rois.shape[0], run):
        chunk = slice(start, min(start + run, rois.shape[0]))
        some = None if offset is None else offset[chunk].to(wide)
        yield chunk, reading_of(input, rois[chunk], some, pooling, rows)


def check_rois(rois: Tensor, images: int) -> None:
    """Check the values of RoIs. This happens in the kernel, so compiled and traced calls are checked too."""
    good = rois.isfinite().all(1) & (rois[:, 0] >= 0) & (rois[:, 0] < images)
    if not bool(good.all()):
        line = int((~good).nonzero()[0])
        raise ValueError(
            f"rois must be finite with an image index of 0 to {images - 1}, got rois[{line}] = {rois[line].tolist()}"
        )


def reading_of(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling, rows: int) -> Reading:
    (height, width), (group_height, group_width) = pooling.output_size, pooling.group_size
    bins_y = _bins(rois[:, 2], rois[:, 4], height, input.shape[2], pooling)
    bins_x = _bins(rois[:, 1], rois[:, 3], width, input.shape[3], pooling)
    moves = (bins_y.length * pooling.gamma, bins_x.length * pooling.gamma)
    y = bins_y.position[:, None, :, None, :]  # [R, 1, Ph, 1, S]
    x = bins_x.position[:, None, None, :, :]  # [R, 1, 1, Pw, S]
    classes = 1
    if offset is not None:
        classes = offset.shape[1] // 2
        shift = offsets_of_bins(offset, pooling)
        x = x + (shift[:, :, 0] * moves[1].view(-1, 1, 1, 1)).unsqueeze(-1)  # [R, T, Ph, Pw, S]
        y = y + (shift[:, :, 1] * moves[0].view(-1, 1, 1, 1)).unsqueeze(-1)
    full = (rois.shape[0], classes, height, width, -1)
    axis_y, count_y = _axis(y.expand(full), bins_y.counted[:, None, :, None, :], input.shape[2], pooling.rule)
    axis_x, count_x = _axis(x.expand(full), bins_x.counted[:, None, None, :, :], input.shape[3], pooling.rule)
    count = count_y * count_x
    share = torch.where(count > 0, 1 / count.clamp(min=1).to(y.dtype), torch.zeros((), dtype=y.dtype))

    image = rois[:, 0].long().view(-1, 1, 1, 1, 1, 1)
    cell = (image * input.shape[2] + axis_y.cell.unsqueeze(-1)) * input.shape[3] + axis_x.cell.unsqueeze(-2)
    group = groups_of_bins(pooling, rois.device)[:, :, None, None]  # [Ph, Pw, 1, 1]
    klass = torch.arange(classes, device=rois.device).view(-1, 1, 1, 1, 1)
    row = (cell * (group_height * group_width) + group) * classes + klass
    inside = axis_y.inside.unsqueeze(-1) & axis_x.inside.unsqueeze(-2)
    index = torch.where(inside, row, rows - 1).flatten(4).flatten(0, 3)
    return Reading(index, axis_y, axis_x, share, moves)


def _bins(start: Tensor, end: Tensor, parts: int, size: int, pooling: Pooling) -> bins.Bins:
    if pooling.rule == "whole_cells":
        return bins.whole_cells(start, end, pooling.spatial_scale, parts, size)
    if pooling.rule == "authors_whole_cells":
        return bins.authors_whole_cells(start, end, pooling.spatial_scale, parts, size)
    return bins.authors_samples(start, end, pooling.spatial_scale, parts, pooling.sample_per_part)


def _axis(position: Tensor, counted: Tensor, size: int, rule: str) -> tuple[bilinear.Axis, Tensor]:
    """The cells that the counted positions `[..., S]` read, as entries `[..., 2 S]`, and the number that count."""
    if rule == "authors_samples":
        axis = bilinear.clamped(position, size)
        counted = axis.inside[..., 0] | position.isnan()
    else:
        axis = bilinear.zero_padded(position, size)
    used = counted.unsqueeze(-1)
    zero = position.new_zeros(())
    entries = bilinear.Axis(
        axis.cell.flatten(-2),
        (axis.inside & used).flatten(-2),
        torch.where(used, axis.weight, zero).flatten(-2),
        torch.where(used, axis.slope, zero).flatten(-2),
    )
    return entries, counted.sum(-1)


def offsets_of_bins(offset: Tensor, pooling: Pooling) -> Tensor:
    """Offsets of parts `[R, 2 * T, Qh, Qw]` as offsets of bins `[R, T, 2, Ph, Pw]`, x first."""
    row = _part(pooling.output_size[0], offset.shape[2], offset.device).unsqueeze(1)
    column = _part(pooling.output_size[1], offset.shape[3], offset.device)
    rois, channels, *parts = offset.shape
    return offset.reshape(rois, channels // 2, 2, *parts)[..., row, column]


def groups_of_bins(pooling: Pooling, device: torch.device) -> Tensor:
    """The channel group that each bin reads, `[Ph, Pw]`."""
    row = _part(pooling.output_size[0], pooling.group_size[0], device).unsqueeze(1)
    return row * pooling.group_size[1] + _part(pooling.output_size[1], pooling.group_size[1], device)


def _part(bins_on_axis: int, parts: int, device: torch.device) -> Tensor:
    """The part of an offset map, or the channel group, of each bin: floor(i * parts / bins)."""
    return torch.arange(bins_on_axis, device=device).mul(parts).div(bins_on_axis, rounding_mode="floor")


def table_of(input: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    """The map as rows `[C / T]`, one per (image, cell, group, class), and a last row of zeros."""
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    classes = 1 if offset is None else offset.shape[1] // 2
    groups = pooling.group_size[0] * pooling.group_size[1]
    channels = input.shape[1] // groups
    batch, _, height, width = input.shape
    by_group = input.to(wide).reshape(batch, channels, groups, height, width).transpose(1, 2).flatten(1, 2)
    return bilinear.rows_of(by_group, channels // classes)


def _ungrouped(rows: Tensor, pooling: Pooling, classes: int) -> Tensor:
    """Undo the channel order of `table_of`: rows of all channels in output order."""
    groups = pooling.group_size[0] * pooling.group_size[1]
    by_cell = rows[:-1].reshape(-1, groups, classes * rows.shape[1]).transpose(1, 2)
    by_cell = by_cell.flatten(1)
    return torch.cat((by_cell, by_cell.new_zeros(1, by_cell.shape[1])))


_ENTRIES_AT_ONCE = 1 << 23
_ENTRIES_EXPECTED = 64
