"""What a kernel of deformable convolution could take at best with given tiles: arithmetic, no measurement.

Bytes and operations are counted from the tiles, instructions from the tiles or the machine code, and divided by what
the vendor states for the GPU. A pass takes as long as the slowest of its parts, times what the last, partly filled
round of blocks wastes. The figures rank candidates before there is a measurement; they do not replace one.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Figures(NamedTuple):
    """Of one compiled kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that did not fit them.
        shared: bytes of a block.
        threads: of a block.
        turn: instructions of a turn of the longest loop; 0 where they are not known.
    """

    registers: int
    spilled: int
    shared: int
    threads: int
    turn: int = 0


class Gpu(NamedTuple):
    """A GPU as its vendor describes it; the last three are of the size that is measured with kernels like these."""

    name: str
    multiprocessors: int
    registers: int  # of a multiprocessor
    shared: int  # bytes of a multiprocessor
    block_shared: int  # bytes that one block may have
    threads: int  # of a multiprocessor
    blocks: int  # of a multiprocessor
    memory: float  # bytes a second
    products: dict[str, float]  # operations a second of matrix products, by how numbers are multiplied
    instructions: float  # a second, of all threads
    cache: float  # bytes a second from the second-level cache
    additions: float  # float32 a second that are added in memory
    latency: float  # seconds from a gather's start to the product of its values


GPUS = {
    90: Gpu(
        "H100 SXM", 132, 65536, 228 << 10, 227 << 10, 2048, 32, 3.35e12,
        {"half": 989e12, "tf32": 494e12, "float32": 67e12}, 33.5e12, 3.5e12, 0.7e12, 7e-7,
    ),
    80: Gpu(
        "A100 SXM", 108, 65536, 164 << 10, 163 << 10, 2048, 32, 2.04e12,
        {"half": 312e12, "tf32": 156e12, "float32": 19.5e12}, 9.75e12, 2.5e12, 0.4e12, 7e-7,
    ),
}  # fmt: skip

_RESERVED = 1 << 10  # bytes of shared memory that the system keeps for each block
_WARP, _GRAIN = 32, 8  # threads; registers of a thread are given out by eights
_LINE = 128  # bytes
_BLEND = 10  # instructions for a value of a column: four conversions, four multiplications and additions, two to store


class Work(NamedTuple):
    """A convolution.

    Attributes:
        outs: output channels of a group.
        unit: channels that share a group and an offset group.
        size: bytes of a value.
        multiplied: `"half"`, `"tf32"` or `"float32"`.
    """

    cells: int
    channels: int
    outs: int
    groups: int
    offset_groups: int
    unit: int
    taps: int
    inputs: int  # cells of the input
    size: int
    multiplied: str


class Cost(NamedTuple):
    """What a launch does, all its programs together; `seconds` weighs it."""

    programs: int
    steps: int  # that a program takes one after the other, each of them waiting for what it gathers
    cache: float  # bytes from the second-level cache
    memory: float  # bytes from and to memory, if the cache holds what is read again
    products: float
    instructions: float
    additions: float = 0.0
    flat: bool = False  # a step is a turn of the longest loop

    def seconds(self, gpu: Gpu, work: Work, figures: Figures, stages: int) -> float:
        """At least this long; `stages` of steps are under way at a time."""
        together = gpu.multiprocessors * blocks(figures, gpu)
        rounds = -(-self.programs // together)
        wasted = rounds * together / self.programs
        issued = self.programs * self.steps * figures.turn * figures.threads if self.flat else 0
        parts = (
            self.cache / gpu.cache,
            self.products / gpu.products[work.multiplied] * wasted,
            max(self.instructions, issued) / gpu.instructions * wasted,
            self.additions / gpu.additions,
            rounds * self.steps * gpu.latency / max(1, stages - 1),
        )
        return max(self.memory / gpu.memory, *parts)


def blocks(figures: Figures, gpu: Gpu) -> int:
    """How many blocks a multiprocessor holds, by registers, shared memory and threads; 0 where one does not fit."""
    if figures.shared > gpu.block_shared or figures.threads > gpu.threads:
        return 0
    warps = figures.threads // _WARP
    registers = -(-max(figures.registers, 1) // _GRAIN) * _GRAIN * _WARP * warps
    return min(
        gpu.registers // registers,
        gpu.shared // (figures.shared + _RESERVED),
        gpu.threads // figures.threads,
        gpu.blocks,
    )


def cost(kernel: str, work: Work, tiles: Any) -> Cost:
    """What a kernel of `pliant.ops.deform_conv2d.tiles.KERNELS` does with some tiles."""
    return _COSTS[kernel](work, tiles)


def _ceil(length: int, block: int) -> int:
    return -(-length // block)


def _gathered(work: Work, tiles: Any, cached: bool | None = None) -> float:
    """Bytes that one reading of all columns takes: four corners, of which a tile's cells share some.

    Copies that Triton's pipeline makes ahead go past the first-level cache, so that nothing is shared, and half a line
    takes as long as a whole one. Elsewhere the corners of neighbours are the same cells: a patch w by h reads
    (w + 1)(h + 1) cells for four times w h.
    """
    corners = work.cells * work.taps * work.channels * 4 * work.size
    if cached is None:
        cached = tiles.stages < 2 or tiles.early
    if not cached:
        return corners * max(1.0, _LINE / (tiles.channels * work.size))
    width = tiles.patch or tiles.cells
    height = tiles.cells // width
    return corners * (width + 1) * (height + 1) / (4 * width * height)


def _products(work: Work, tiles: Any) -> float:
    """With what tiles add at the borders."""
    cells = _ceil(work.cells, tiles.cells) * tiles.cells
    outs = _ceil(work.outs, tiles.outs) * tiles.outs
    unit = _ceil(work.unit, tiles.channels) * tiles.channels
    return 2.0 * cells * work.taps * work.channels // work.unit * unit * outs


def _values(work: Work) -> tuple[float, float, float, float]:
    """Bytes of input, output, weights and positions."""
    weights = work.channels * work.outs * work.taps * work.size
    positions = 2 * work.cells * work.offset_groups * work.taps * 4
    return work.inputs * work.channels * work.size, work.cells * work.outs * work.groups * work.size, weights, positions


def _forward(work: Work, tiles: Any) -> Cost:
    input, output, weights, positions = _values(work)
    cells, outs = _ceil(work.cells, tiles.cells), _ceil(work.outs, tiles.outs)
    columns = work.cells * work.taps * work.channels * outs
    return Cost(
        programs=cells * outs * work.groups,
        steps=work.taps * work.channels // work.groups // work.unit * _ceil(work.unit, tiles.channels),
        cache=_gathered(work, tiles) * outs + cells * weights + output,
        memory=input + output + weights + positions,
        products=_products(work, tiles),
        instructions=_BLEND * columns,
        flat=True,
    )


def _backward_samples(work: Work, tiles: Any) -> Cost:
    input, output, weights, positions = _values(work)
    cells, blocks = _ceil(work.cells, tiles.cells), _ceil(work.unit, tiles.channels)
    columns = work.cells * work.taps * work.channels
    units = work.channels // work.unit
    above = work.cells * work.outs * work.size * work.taps * units * blocks
    return Cost(
        programs=cells * work.taps * work.offset_groups,
        steps=units // work.offset_groups * blocks * _ceil(work.outs, tiles.outs),
        cache=above + cells * weights + _gathered(work, tiles, True),
        memory=input * (1 + 8 / work.size) + output + weights + 2 * positions,
        products=_products(work, tiles),
        instructions=4 * _BLEND * columns,
        additions=4 * columns,
    )


def _backward_weight(work: Work, tiles: Any) -> Cost:
    input, output, weights, positions = _values(work)
    outs, blocks = _ceil(work.outs, tiles.outs), _ceil(work.unit, tiles.channels)
    programs = outs * work.taps * (work.channels // work.unit) * blocks
    shares = min(_ceil(4 * 132, programs), _ceil(work.cells, tiles.cells))
    columns = work.cells * work.taps * work.channels * outs
    above = work.cells * work.outs * work.size * work.taps * (work.channels // work.unit) * blocks
    return Cost(
        programs=programs * shares,
        steps=_ceil(_ceil(work.cells, tiles.cells), shares),
        cache=_gathered(work, tiles) * outs + above,
        memory=input + output + 2 * weights + positions,
        products=_products(work, tiles),
        instructions=_BLEND * columns,
        additions=weights / work.size * shares,
        flat=True,
    )


def _columns(work: Work, tiles: Any) -> Cost:
    input, _, _, positions = _values(work)
    columns = work.cells * work.taps * work.channels
    return Cost(
        programs=_ceil(work.cells, tiles.cells) * work.offset_groups,
        steps=work.taps * work.channels // work.offset_groups // work.unit * _ceil(work.unit, tiles.channels),
        cache=_gathered(work, tiles, True) + columns * work.size,
        memory=input + columns * work.size + positions,
        products=0.0,
        instructions=_BLEND * columns,
    )


def _columns_backward(work: Work, tiles: Any) -> Cost:
    forward = _columns(work, tiles)
    columns = work.cells * work.taps * work.channels
    more = columns * work.size
    return forward._replace(
        cache=forward.cache + more, memory=forward.memory + more, instructions=2 * forward.instructions
    )


def _gather(work: Work, tiles: Any) -> Cost:
    input, *_ = _values(work)
    columns = work.cells * work.taps * work.channels
    samples = 4 * work.cells * work.taps * work.offset_groups
    return Cost(
        programs=_ceil(work.inputs, tiles.cells) * (work.channels // work.unit) * _ceil(work.unit, tiles.channels),
        steps=4 * work.cells * work.taps // work.inputs,
        cache=4 * columns * work.size + 8 * samples * _ceil(work.unit, tiles.channels),
        memory=columns * work.size + input + 8 * samples,
        products=0.0,
        instructions=4 * 2 * columns,
    )


_COSTS = {
    "forward": _forward,
    "backward_samples": _backward_samples,
    "backward_weight": _backward_weight,
    "columns": _columns,
    "columns_backward": _columns_backward,
    "gather": _gather,
}
