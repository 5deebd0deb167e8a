"""Triton kernels of multi-scale deformable attention; gpu.py launches them.

A line is one head of one query. A program sums, or spreads, the points of some lines, a point at a time: its four cells
are rows of `value`, which lies as torch has it, channels last. reference.py is the specification.

Legend: BLOCK_N lines, BLOCK_C channels of a head, all of them.
"""

import triton
import triton.language as tl

_SIZES = ["lines", "queries", "rows", "points"]


@triton.jit
def _axis(position, size):
    """Two cells on one axis: each one's number, whether it is read, and its weight; then the fraction."""
    floor = tl.floor(position)
    # So far outside at most that neither cell is in the map; NaN as well.
    low = tl.where(floor >= -2.0, tl.where(floor <= size, floor, size), -2.0).to(tl.int32)
    fraction = position - floor
    in_low = (low >= 0) & (low < size)
    in_high = (low >= -1) & (low < size - 1)
    nan = position != position
    weight_low = tl.where(in_low | nan, 1 - fraction, 0.0)
    weight_high = tl.where(in_high | nan, fraction, 0.0)
    return low, in_low, in_high, weight_low, weight_high


@triton.jit
def _level(shapes, starts, level, rows):
    """Height, width and first row of a level, and whether it lies in the value."""
    height = tl.load(shapes + 2 * level)
    width = tl.load(shapes + 2 * level + 1)
    start = tl.load(starts + level)
    fits = (height > 0) & (width > 0) & (start >= 0) & (height <= rows) & (width <= rows)
    fits = fits & (start + height * width <= rows)
    return height.to(tl.int32), width.to(tl.int32), start, fits


@triton.jit
def _corner(y, x, inside, start, width, image_rows, heads, head, channels, INDEX: tl.constexpr):
    """The first element of one corner's row; that of row 0 where it is not read."""
    cell = tl.where(inside, start.to(INDEX) + y.to(INDEX) * width + x, 0)
    return ((image_rows + cell) * heads + head) * channels


@triton.jit
def _values(value, at, inside, channel, channels):
    mask = inside[:, None] & (channel < channels)[None, :]
    return tl.load(value + at[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add(grad_value, at, inside, channel, channels, amount):
    mask = inside[:, None] & (channel < channels)[None, :]
    tl.atomic_add(grad_value + at[:, None] + channel[None, :], amount, mask=mask, sem="relaxed")


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
            y0, in_y0, in_y1, wy0, wy1 = _axis(y, height)
            x0, in_x0, in_x1, wx0, wx1 = _axis(x, width)
            in_y0 = in_y0 & live & fits
            in_y1 = in_y1 & live & fits
            at00 = _corner(y0, x0, in_y0 & in_x0, start, width, image_rows, heads, head, channels, INDEX)
            at01 = _corner(y0, x0 + 1, in_y0 & in_x1, start, width, image_rows, heads, head, channels, INDEX)
            at10 = _corner(y0 + 1, x0, in_y1 & in_x0, start, width, image_rows, heads, head, channels, INDEX)
            at11 = _corner(y0 + 1, x0 + 1, in_y1 & in_x1, start, width, image_rows, heads, head, channels, INDEX)
            total += _values(value, at00, in_y0 & in_x0, channel, channels) * (wy0 * wx0 * weight)[:, None]
            total += _values(value, at01, in_y0 & in_x1, channel, channels) * (wy0 * wx1 * weight)[:, None]
            total += _values(value, at10, in_y1 & in_x0, channel, channels) * (wy1 * wx0 * weight)[:, None]
            total += _values(value, at11, in_y1 & in_x1, channel, channels) * (wy1 * wx1 * weight)[:, None]
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
            y0, in_y0, in_y1, wy0, wy1 = _axis(y, height)
            x0, in_x0, in_x1, wx0, wx1 = _axis(x, width)
            steep_x0 = tl.where(in_x0, 1.0, 0.0)
            steep_x1 = tl.where(in_x1, 1.0, 0.0)
            steep_y0 = tl.where(in_y0, 1.0, 0.0)
            steep_y1 = tl.where(in_y1, 1.0, 0.0)
            in_y0 = in_y0 & live & fits
            in_y1 = in_y1 & live & fits
            at00 = _corner(y0, x0, in_y0 & in_x0, start, width, image_rows, heads, head, channels, INDEX)
            at01 = _corner(y0, x0 + 1, in_y0 & in_x1, start, width, image_rows, heads, head, channels, INDEX)
            at10 = _corner(y0 + 1, x0, in_y1 & in_x0, start, width, image_rows, heads, head, channels, INDEX)
            at11 = _corner(y0 + 1, x0 + 1, in_y1 & in_x1, start, width, image_rows, heads, head, channels, INDEX)
            dot00 = tl.sum(above * _values(value, at00, in_y0 & in_x0, channel, channels), 1)
            dot01 = tl.sum(above * _values(value, at01, in_y0 & in_x1, channel, channels), 1)
            dot10 = tl.sum(above * _values(value, at10, in_y1 & in_x0, channel, channels), 1)
            dot11 = tl.sum(above * _values(value, at11, in_y1 & in_x1, channel, channels), 1)
            _add(grad_value, at00, in_y0 & in_x0, channel, channels, above * (wy0 * wx0 * weight)[:, None])
            _add(grad_value, at01, in_y0 & in_x1, channel, channels, above * (wy0 * wx1 * weight)[:, None])
            _add(grad_value, at10, in_y1 & in_x0, channel, channels, above * (wy1 * wx0 * weight)[:, None])
            _add(grad_value, at11, in_y1 & in_x1, channel, channels, above * (wy1 * wx1 * weight)[:, None])
            of_weight = wy0 * (wx0 * dot00 + wx1 * dot01) + wy1 * (wx0 * dot10 + wx1 * dot11)
            of_x = wy0 * (steep_x1 * dot01 - steep_x0 * dot00) + wy1 * (steep_x1 * dot11 - steep_x0 * dot10)
            of_y = wx0 * (steep_y1 * dot10 - steep_y0 * dot00) + wx1 * (steep_y1 * dot11 - steep_y0 * dot01)
            type = grad_locations.dtype.element_ty
            tl.store(grad_locations + 2 * place, (of_x * weight * width).to(type), mask=live)
            tl.store(grad_locations + 2 * place + 1, (of_y * weight * height).to(type), mask=live)
            tl.store(grad_weights + place, of_weight.to(grad_weights.dtype.element_ty), mask=live)
