"""Triton kernels of multi-scale deformable attention; gpu.py launches them.

A line is one head of one query. A program sums, or spreads, the points of some lines, a point at a time: its four cells
are rows of `value`, which lies as torch has it, channels last. reference.py is the specification.

Legend: BLOCK_N lines, BLOCK_C channels of a head, all of them.
"""

import triton
import triton.language as tl

from pliant.ops._sample_kernels import gathered, spread

_SIZES = ["lines", "queries", "rows", "points"]


@triton.jit
def _level(shapes, starts, level, rows):
    """Height, width and first row of a level, and whether it lies in the value."""
    height = tl.load(shapes + 2 * level)
    width = tl.load(shapes + 2 * level + 1)
    start = tl.load(starts + level)
    fits = (height > 0) & (width > 0) & (start >= 0) & (height <= rows) & (width <= rows)
    fits = fits & (start + height * width <= rows)
    return height.to(tl.int32), width.to(tl.int32), start, fits


@triton.jit(do_not_specialize=_SIZES)
def forward(
    value, shapes, starts, locations, weights, out, lines, queries, rows, heads, channels, levels, points,
    INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = line < lines
    head = line % heads
    image_rows = line // heads // queries * rows
    channel = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for level in range(levels):
        height, width, start, fits = _level(shapes, starts, level, rows)
        for point in range(points):
            place = (line * levels + level) * points + point
            x = tl.load(locations + 2 * place, mask=live, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + 2 * place + 1, mask=live, other=0.0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + place, mask=live, other=0.0).to(tl.float32)
            weight = tl.where(fits, weight, float("nan"))
            total += gathered(value, y, x, weight, live & fits, start, height, width, image_rows, heads, head, channel,
                              channels, INDEX)  # fmt: skip
    wanted = live[:, None] & (channel < channels)[None, :]
    tl.store(out + (line * channels)[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=_SIZES)
def backward(
    grad, value, shapes, starts, locations, weights, grad_value, grad_locations, grad_weights,
    lines, queries, rows, heads, channels, levels, points,
    INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As the forward: cells get their part of the gradient, and are multiplied with it for location and weight."""
    line = tl.program_id(0).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = line < lines
    head = line % heads
    image_rows = line // heads // queries * rows
    channel = tl.arange(0, BLOCK_C)
    wanted = live[:, None] & (channel < channels)[None, :]
    above = tl.load(grad + (line * channels)[:, None] + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
    for level in range(levels):
        height, width, start, fits = _level(shapes, starts, level, rows)
        for point in range(points):
            place = (line * levels + level) * points + point
            x = tl.load(locations + 2 * place, mask=live, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + 2 * place + 1, mask=live, other=0.0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + place, mask=live, other=0.0).to(tl.float32)
            weight = tl.where(fits, weight, float("nan"))
            of_weight, of_x, of_y = spread(
                value, grad_value, above, y, x, weight, live & fits, start, height, width, image_rows, heads, head,
                channel, channels, INDEX,
            )  # fmt: skip
            type = grad_locations.dtype.element_ty
            tl.store(grad_locations + 2 * place, (of_x * width).to(type), mask=live)
            tl.store(grad_locations + 2 * place + 1, (of_y * height).to(type), mask=live)
            tl.store(grad_weights + place, of_weight.to(grad_weights.dtype.element_ty), mask=live)
