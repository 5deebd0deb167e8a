"""The maps that lie in the rows of a value, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """A map: its cell (y, x) is row `start + y * width + x` of the value."""

    height: int
    width: int
    start: int


def levels_of(spatial_shapes: Tensor, level_start_index: Tensor, rows: int) -> list[Level]:
    """The levels as numbers, checked where the numbers are, so that compiled and traced calls are checked as well."""
    shapes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    levels = [Level(height, width, start) for (height, width), start in zip(shapes, starts, strict=True)]
    for index, level in enumerate(levels):
        if min(level) < 0 or 0 in level[:2] or level.start + level.height * level.width > rows:
            raise ValueError(
                f"level {index} must lie in the {rows} rows of value, got spatial_shapes[{index}] = {list(level[:2])} "
                f"and level_start_index[{index}] = {level.start}"
            )
    return levels


def shapes_of(pairs: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Pairs as integers `[L, 2]`. Sizes that a capture leaves open stay open, unlike in `torch.tensor`."""
    sides = [side for pair in pairs for side in pair]
    if all(isinstance(side, int) for side in sides):
        return torch.tensor(sides, device=device).view(-1, 2)
    open_sides = [torch.scalar_tensor(side, dtype=torch.int64, device=device) for side in sides]
    return torch.stack(open_sides).view(-1, 2)


def starts_of(spatial_shapes: Tensor) -> Tensor:
    """The first rows `[L]` of maps `[L, 2]` that lie end to end."""
    cells = spatial_shapes.prod(1)
    return cells.cumsum(0) - cells
