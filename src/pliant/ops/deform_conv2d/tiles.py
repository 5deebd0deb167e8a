"""How the GPU's kernels of deformable convolution are launched: tiles, threads, and which of three designs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch

from pliant.ops import _gpu, _native
from pliant.ops.deform_conv2d import shipped

KERNELS = ("forward", "backward_samples", "backward_weight", "columns", "columns_backward", "gather")
_PRODUCTS = KERNELS[:3]  # the kernels that multiply
CHUNK_BYTES = 96 << 20  # of columns at a time
_LEAST = 16  # of a side of a matrix product
LEAST_SAMPLED = 4  # channels that are read at once: 8 bytes in half precision
_LINE = 64  # channels that are a line of memory in half precision
# Lines of a tile that packs offset groups, and its warps: the fastest of a few on an H200.
_PACKED = {
    "columns": (128, 4),
    "columns_backward": (128, 4),
    "gather": (32, 1),
    "depthwise_forward": (64, 4),
    "depthwise_backward": (32, 1),
}


class Tiles(NamedTuple):
    """What one program computes at a time, and the threads that do."""

    cells: int
    channels: int
    outs: int = 0
    warps: int = 8
    stages: int = 2
    patch: int = 0  # the width of a tile of output cells; 0 for a run of cells
    unroll: int = 1  # blocks of channels for which positions are computed once
    early: bool = False  # whether corners are loaded a step ahead, into registers
    registers: int = 0  # the most for a thread; 0 lets the compiler choose
    pack: int = 1  # offset groups of a cell side by side, where one has too few channels for a line of memory

    @property
    def options(self) -> dict[str, int]:
        """Triton's options of a launch."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages} | limit


class Problem(NamedTuple):
    """What the choice depends on."""

    dtype: torch.dtype
    device: torch.device
    cells: int  # output cells of all images
    outs: int  # of a group
    groups: int
    unit: int  # channels that share a group and an offset group
    taps: int
    far: bool  # indices need 64 bits
    sampled: int  # channels that share an offset group
    offset_groups: int


_forced: dict[str, Any] = {}


@contextmanager
def forced(**settings: Any) -> Iterator[None]:
    """Launch kernels with other tiles, or by columns or not (`forward_by_columns=True`), for measurements."""
    before = dict(_forced)
    _forced.update(settings)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def any_forced() -> bool:
    """Whether a measurement chooses settings."""
    return bool(_forced)


def by_columns(problem: Problem, *, backward: bool) -> bool:
    """Whether columns are written to memory and multiplied by torch; else a kernel multiplies as it gathers."""
    name = "backward_by_columns" if backward else "forward_by_columns"
    if problem.dtype == torch.float32 and problem.groups > 1:
        exact = _gpu.precision(problem.dtype) == "ieee"
        if exact and _gpu.matrix_precision() != "ieee":
            return False  # products by groups are matrix products, which would be less precise than asked for
    if name in _forced:
        return bool(_forced[name])
    if (found := shipped.find(name, problem)) is not None:
        return bool(found["design"] == "columns")
    wide = problem.groups == 1 and 96 <= problem.unit <= 192 and problem.outs <= 128
    if wide and not backward and problem.dtype != torch.float32:
        return False  # one tile holds all outputs, and columns take longer to write than to gather
    return problem.sampled >= LEAST_SAMPLED and (problem.groups > 1 or problem.outs >= _LEAST)


def missing_channels(sampled: int, groups: int, outs: int) -> int:
    """How many channels of zeros each offset group is given, so that columns are written for torch to multiply."""
    forbidden = False in (_forced.get("forward_by_columns"), _forced.get("backward_by_columns"))
    short = groups == 1 and sampled < LEAST_SAMPLED and outs >= _LEAST
    return LEAST_SAMPLED - sampled if short and not forbidden else 0


def depthwise(problem: Problem) -> bool:
    """Whether each output channel has one input channel."""
    channels = problem.sampled * problem.offset_groups
    return problem.outs == 1 < problem.groups == channels and bool(_forced.get("depthwise", True))


def tiles(kernel: str, problem: Problem) -> Tiles:
    """The tiles of a kernel: as forced, as measured on such a GPU, or by rule."""
    if kernel in _forced:
        return _fitted(kernel, _forced[kernel], problem)
    if _native.interpreting():
        interpreted = Tiles(32, 16, 32, 1, 1) if kernel in _PRODUCTS else Tiles(128, 16, 0, 1, 1)
        return _fitted(kernel, interpreted, problem)
    found = shipped.find(kernel, problem)
    return _fitted(kernel, _by_rule(kernel, problem) if found is None else Tiles(**found["tiles"]), problem)


def _by_rule(kernel: str, problem: Problem) -> Tiles:
    """The settings that were best for most shapes on an H100, or for narrow offset groups and filters on an H200."""
    single = problem.dtype == torch.float32
    if kernel == "forward":
        if single and _gpu.precision(problem.dtype) == "ieee":
            return Tiles(64, 16, 64, 4, 2)
        return Tiles(64, 32, 128, 8, 3, early=True) if single else Tiles(64, 64, 128, 4, 1)
    if kernel == "backward_samples":
        return Tiles(64, 32, 64, 8, 2) if single else Tiles(64, 64, 64, 4, 3, patch=8)
    if kernel == "backward_weight":
        return Tiles(32, 32, 64, 4, 2) if single else Tiles(64, 64, 128, 8, 2)
    if (pack := _packed(problem, block(problem.sampled, _LINE, LEAST_SAMPLED))) > 1:
        lines, warps = _PACKED[kernel]
        return Tiles(lines // pack, _LINE, 0, warps, 1, patch=0 if kernel == "gather" else min(4, lines // pack))
    if kernel == "gather":
        return Tiles(max(8, 256 // block(problem.sampled, 256, LEAST_SAMPLED)), 256, 0, 4, 1)
    if kernel == "depthwise_forward":
        return Tiles(8, 128, 0, 4, 1, patch=4)
    if kernel == "depthwise_backward":
        return Tiles(32, 32, 0, 2, 1, patch=8)
    unroll = 1 if kernel == "columns_backward" else 2
    cells, channels = (32, 64) if problem.sampled >= 256 else (64, 32)
    return Tiles(cells, channels, 0, 8, 1, patch=8, unroll=unroll)


def candidates(kernel: str, dtype: torch.dtype) -> list[Tiles]:
    """What is worth a measurement."""
    if kernel == "forward":
        return [
            Tiles(cells, channels, outs, warps, stages, patch, early=early)
            for (cells, channels, outs, warps), (stages, early), patch in product(
                _FORWARD, ((3, False), (3, True), (1, False)), (0, 8)
            )
        ]
    blocks: Iterable[tuple[int, int, int, int]]
    if kernel == "backward_samples":
        blocks = (64, 32, 64, 8), (64, 64, 64, 8), (64, 64, 64, 4), (64, 32, 64, 4)
        return [Tiles(*block, stages, patch) for block, stages, patch in product(blocks, (2, 3), (0, 8))]
    if kernel == "backward_weight":
        blocks = (64, 64, 128, 8), (64, 128, 256, 8), (64, 128, 128, 8), (32, 128, 256, 8), (32, 32, 64, 4)
        return [Tiles(*block, stages, patch) for block, stages, patch in product(blocks, (1, 2, 3), (0, 8))]
    if kernel == "gather":
        blocks = product((4, 8, 16, 32), (32, 64, 128, 256), (0,), (2, 4, 8))
        return [Tiles(*block, 1, patch) for block, patch in product(blocks, (0, 4))]
    if kernel in ("columns", "columns_backward"):
        return [
            Tiles(cells, channels, 0, warps, 1, patch, unroll)
            for (cells, channels, warps), unroll, patch in product(_COLUMNS, (1, 2, 4), (4, 8))
        ]
    raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")


_FORWARD = (  # cells, channels, outs, warps
    *((64, 32, 64, 4), (64, 64, 64, 4), (64, 32, 128, 4), (64, 64, 128, 4), (64, 64, 128, 8)),
    *((64, 32, 256, 8), (64, 64, 256, 8), (128, 32, 128, 8), (128, 64, 128, 8), (128, 32, 256, 8), (64, 32, 512, 8)),
)
_COLUMNS = (  # cells, channels, warps
    *((16, 16, 1), (16, 32, 2), (32, 32, 4), (64, 32, 8), (64, 16, 4)),
    *((16, 64, 4), (32, 64, 8), (32, 64, 4)),
)


def _fitted(kernel: str, tiles: Tiles, problem: Problem) -> Tiles:
    """Blocks no larger than a problem fills."""
    if kernel in _PRODUCTS:
        outs = block(problem.outs, tiles.outs)
        return tiles._replace(outs=outs, channels=block(problem.unit, tiles.channels))
    channels = block(problem.sampled, tiles.channels, LEAST_SAMPLED)
    unroll = max(1, min(tiles.unroll, problem.sampled // channels))
    return tiles._replace(channels=channels, unroll=unroll, pack=_packed(problem, channels))


def _packed(problem: Problem, channels: int) -> int:
    """How many offset groups lie side by side in a tile: such that a cell's channels fill a line of memory."""
    if problem.sampled != channels or channels >= _LINE:
        return 1
    return math.gcd(problem.offset_groups, _LINE // channels)


def block(length: int, most: int, least: int = _LEAST) -> int:
    """A power of two that covers a length, from `least`, as of a matrix product, up to `most`."""
    return min(most, max(least, 1 << (length - 1).bit_length()))


def cell_tiles(tiles: Tiles, images: int, rows: int, width: int) -> int:
    """How many tiles cover the cells of some maps, or of rows of one, as runs or as patches."""
    if tiles.patch:
        return images * count(width, tiles.patch) * count(rows, tiles.cells // tiles.patch)
    return count(images * rows * width, tiles.cells)


def count(length: int, block: int) -> int:
    """How many blocks cover a length."""
    return -(-length // block)
