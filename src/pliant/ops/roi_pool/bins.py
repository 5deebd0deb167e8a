"""The positions at which the bins of a RoI sample: one rule for each published pooling.

A rule applies to both axes. A `Bins` contains the positions that each bin reads on one axis, padded to the longest bin,
and which of them count. Symbols: R RoIs, T offset classes, P bins on the axis, S positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bins(NamedTuple):
    """The positions on one axis before offsets are added."""

    position: Tensor  # [R, P, S] cells of the map
    counted: Tensor  # [R, P, S] bool
    length: Tensor  # [R] the RoI's side in cells, which scales the normalised offsets


def whole_cells(start: Tensor, end: Tensor, scale: float, parts: int, size: int) -> Bins:
    """Equation 5: the RoI is rounded to cells, and bin i contains floor(i w / k) <= p < ceil((i + 1) w / k).

    Sides are at least one cell, and cells outside the map are left out. A RoI that touches the map always contains a
    cell of it: it begins at the last cell or before, and ends after the first cell or later. A RoI that does not touch
    the map has no cells, even if its corners would round into the map.
    """
    return _integers(*whole_cells_edges(start, end, scale, parts, size))


def whole_cells_edges(start: Tensor, end: Tensor, scale: float, parts: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """First cells `[R, P]` of the bins, cells after their last `[R, P]`, and the sides of the RoIs `[R]`."""
    # In float32 the product may be rounded above a size that it is below. MPS has no float64.
    exact = start if start.device.type == "mps" else start.double()
    touches = (exact * scale <= size) & (torch.maximum(start, end) >= 0)
    first = _near(round_half_away(start * scale)).clamp(max=size - 1)
    length = (_near(round_half_away(end * scale)).clamp(min=1) - first).clamp(min=1)
    first = torch.where(touches, first, size).unsqueeze(1)
    part = torch.arange(parts, device=start.device)
    cells = length.long().unsqueeze(1)
    low = (first + _floor_divide(part * cells, parts)).clamp(0, size)
    high = (first + _ceil_divide((part + 1) * cells, parts)).clamp(0, size)
    return low, high, length


def authors_whole_cells(start: Tensor, end: Tensor, scale: float, parts: int, size: int) -> Bins:
    """The authors' plain position-sensitive pooling: corners rounded in image pixels, the last pixel included."""
    return _integers(*authors_whole_cells_edges(start, end, scale, parts, size))


def authors_whole_cells_edges(
    start: Tensor, end: Tensor, scale: float, parts: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `whole_cells_edges`."""
    first = _near(round_half_away(start) * scale)
    length = (_near((round_half_away(end) + 1) * scale) - first).clamp(min=0.1)
    part = torch.arange(parts, device=start.device)
    step = (length / parts).unsqueeze(1)
    low = (part * step + first.unsqueeze(1)).floor().clamp(0, size)
    high = ((part + 1) * step + first.unsqueeze(1)).ceil().clamp(0, size)
    return low, high, length


def authors_samples(start: Tensor, end: Tensor, scale: float, parts: int, samples: int) -> Bins:
    """The authors' deformable pooling: `samples` positions per bin from its near edge, shifted by half a cell."""
    first = _near(round_half_away(start) * scale) - 0.5
    length = (_near((round_half_away(end) + 1) * scale) - 0.5 - first).clamp(min=0.1)
    step = length / parts
    part = torch.arange(parts, device=start.device).unsqueeze(1)
    sample = torch.arange(samples, device=start.device)
    position = part * step.view(-1, 1, 1) + first.view(-1, 1, 1) + sample * (step / samples).view(-1, 1, 1)
    return Bins(position, torch.ones_like(position, dtype=torch.bool), length)


def round_half_away(value: Tensor) -> Tensor:
    """C's round: halves are rounded away from zero. Adding a half would also round up the number just below it."""
    size = value.abs()
    floor = size.floor()
    return value.sign() * (floor + (size - floor >= 0.5).to(value.dtype))


def _near(position: Tensor) -> Tensor:
    return position.clamp(-_FAR, _FAR)


def _integers(low: Tensor, high: Tensor, length: Tensor) -> Bins:
    longest = int((high - low).max().clamp(min=1)) if low.numel() else 1
    steps = torch.arange(longest, device=low.device)
    position = low.unsqueeze(-1) + steps
    return Bins(position, position < high.unsqueeze(-1), length)


def _floor_divide(value: Tensor, divisor: int) -> Tensor:
    """Integer division, corrected by one, since runtimes of exported files divide integers in floating point."""
    quotient = value.div(divisor, rounding_mode="floor")
    return quotient + ((quotient + 1) * divisor <= value).long() - (quotient * divisor > value).long()


def _ceil_divide(value: Tensor, divisor: int) -> Tensor:
    return -_floor_divide(-value, divisor)


_FAR = 2.0**24  # beyond any map, and every integer up to here is exact in float32
