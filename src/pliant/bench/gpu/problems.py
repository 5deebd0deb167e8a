"""The problems that are timed on a GPU: rows of `pliant bench` and a pyramid's maps, in dtypes, layouts and batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pliant.bench.gpu.steps import Place
from pliant.bench.rows import CONVOLUTIONS, CallRow, ConvRow

# How float32 is multiplied is a dtype here: in full, or rounded to tf32 for the tensor cores.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
BATCHES = (1, 8, 32)
SPREADS = (1.0, 0.0, 4.0)

# With 128 channels at 100x168, which is a row of `pliant bench`, these are c3 to c5 of a pyramid's backbone.
PYRAMID = (ConvRow(1, 256, 256, 50, 84), ConvRow(1, 512, 512, 25, 42))
FIRST = (CONVOLUTIONS[0], CONVOLUTIONS[2], *PYRAMID)  # conv5 of the paper, and c3 to c5
_OTHERS = [row for row in CONVOLUTIONS if not (isinstance(row, CallRow) and row.channels_last)]  # layouts are ours
ROWS = tuple(dict.fromkeys((*FIRST, *(replace(row, batch=1) for row in _OTHERS))))


@dataclass(frozen=True)
class Problem:
    """A row together with the dtype and layout that it is timed in."""

    row: ConvRow
    dtype: str
    layout: str = "channels last"

    @property
    def key(self) -> dict[str, Any]:
        """The fields that identify the problem in the ledger."""
        return asdict(self.row) | {"dtype": self.dtype, "layout": self.layout}

    @property
    def masked(self) -> bool:
        return isinstance(self.row, CallRow) and self.row.masked

    @property
    def shape(self) -> dict[str, int]:
        """The numbers that launch settings depend on. A unit is the channels that share groups of both kinds."""
        row = self.row
        unit = math.gcd(row.channels // row.groups, row.channels // row.offset_groups)
        cells = row.batch * row.height * row.width
        outs = row.out_channels // row.groups
        return {"cells": cells, "outs": outs, "groups": row.groups, "unit": unit, "taps": row.kernel**2}

    @property
    def name(self) -> str:
        return f"{self.dtype}, {self.layout}, {self.row.name}, spread {self.row.spread:g}"

    def tensors(self, device: str) -> dict[str, Tensor]:
        """Draw the row's tensors on a device and convert them to the dtype. Offsets stay in float32."""
        made = self.row.tensors(device=device)
        layout = LAYOUTS[self.layout]
        found = {name: made[name].to(DTYPES[self.dtype]).contiguous(memory_format=layout) for name in made}
        return found | {"offset": made["offset"]}

    def bytes(self, training: bool) -> int:
        """Count the bytes of all tensors that are read and written, each once a pass."""
        row, size = self.row, DTYPES[self.dtype].itemsize
        cells = row.batch * row.height * row.width
        values = size * (cells * row.channels + row.out_channels * row.channels // row.groups * row.kernel**2)
        offsets = (4 * 2 + size * self.masked) * cells * row.offset_groups * row.kernel**2
        output = size * cells * row.out_channels
        return (3 if training else 1) * (values + offsets) + (2 if training else 1) * output

    def operations(self, training: bool) -> int:
        """Count the multiplications and additions of the matrix products."""
        row = self.row
        products = row.batch * row.height * row.width * row.out_channels * row.channels // row.groups * row.kernel**2
        return 2 * products * (3 if training else 1)


def shrunk(row: ConvRow) -> ConvRow:
    """Return a small row of the same kind for a rehearsal, with few cells and channels."""
    groups = min(row.groups, 2) if row.groups < row.channels else 4
    offset_groups = min(row.offset_groups, 2)
    channels = 4 * groups if row.groups < row.channels else groups
    small = replace(row, batch=min(row.batch, 2), channels=channels, out_channels=channels, height=4, width=5)
    return replace(small, groups=groups, offset_groups=offset_groups, kernel=1, dilation=1)


def problems(place: Place) -> list[Problem]:
    """Return all problems, the most telling first."""
    every = [
        Problem(replace(row, batch=batch, spread=spread), dtype, layout)
        for row in ROWS
        for batch in BATCHES
        for spread in SPREADS
        for dtype in DTYPES
        for layout in LAYOUTS
    ]
    every.sort(key=_interest)  # stable: equals stay in the order of ROWS
    if place.tiny:  # few
        first = [each for each in every if each.row.batch == 1 and each.row.spread == 1]
        kept = {(each.dtype, each.layout == "contiguous" or each.row.groups > 1): each for each in reversed(first)}
        every = [replace(each, row=shrunk(each.row)) for each in kept.values()]
    return list(dict.fromkeys(every))


def _interest(problem: Problem) -> int:
    """Rank a problem; lower comes earlier, as half precision, small batches and offsets of a cell do."""
    row = problem.row
    return (
        {"bfloat16": 0, "float16": 2, "tf32": 3, "float32": 3}[problem.dtype]
        + {1: 0, 8: 0, 32: 2}[row.batch]
        + {1.0: 0, 4.0: 2, 0.0: 3}[row.spread]
        + (2 if problem.layout == "contiguous" else 0)
        + (0 if replace(row, batch=1, spread=FIRST[0].spread) in FIRST else 1)
    )


@contextmanager
def multiplying(dtype: str) -> Iterator[None]:
    """Set how torch and Pliant multiply float32: in full precision, or in tf32 if that is the `dtype`."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
