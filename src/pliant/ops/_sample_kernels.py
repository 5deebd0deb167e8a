"""What the Triton kernels of attention and aggregation share: bilinear samples of rows that lie as torch has them.

A line is one head of one query: it reads all channels of a head, which are contiguous in each row. Tensors of lines are
`[BLOCK_N]`, those of channels `[BLOCK_N, BLOCK_C]`. Cell (y, x) of a map is row `image_rows + start + y * width + x`.
"""

import triton
import triton.language as tl


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


@triton.jit
def gathered(
    value, y, x, weight, live, start, height, width, image_rows, heads, head, channel, channels, INDEX: tl.constexpr
):  # fmt: skip
    """One sample of every line, times its weight: `[BLOCK_N, BLOCK_C]`."""
    y0, in_y0, in_y1, wy0, wy1 = _axis(y, height)
    x0, in_x0, in_x1, wx0, wx1 = _axis(x, width)
    in_y0 = in_y0 & live
    in_y1 = in_y1 & live
    at00 = _corner(y0, x0, in_y0 & in_x0, start, width, image_rows, heads, head, channels, INDEX)
    at01 = _corner(y0, x0 + 1, in_y0 & in_x1, start, width, image_rows, heads, head, channels, INDEX)
    at10 = _corner(y0 + 1, x0, in_y1 & in_x0, start, width, image_rows, heads, head, channels, INDEX)
    at11 = _corner(y0 + 1, x0 + 1, in_y1 & in_x1, start, width, image_rows, heads, head, channels, INDEX)
    total = _values(value, at00, in_y0 & in_x0, channel, channels) * (wy0 * wx0 * weight)[:, None]
    total += _values(value, at01, in_y0 & in_x1, channel, channels) * (wy0 * wx1 * weight)[:, None]
    total += _values(value, at10, in_y1 & in_x0, channel, channels) * (wy1 * wx0 * weight)[:, None]
    total += _values(value, at11, in_y1 & in_x1, channel, channels) * (wy1 * wx1 * weight)[:, None]
    return total


@triton.jit
def spread(
    value, grad_value, above, y, x, weight, live, start, height, width, image_rows, heads, head, channel, channels,
    INDEX: tl.constexpr,
):  # fmt: skip
    """The gradient `above` of one sample of every line: added to its cells, and returned for its weight, x and y."""
    y0, in_y0, in_y1, wy0, wy1 = _axis(y, height)
    x0, in_x0, in_x1, wx0, wx1 = _axis(x, width)
    steep_x0 = tl.where(in_x0, 1.0, 0.0)
    steep_x1 = tl.where(in_x1, 1.0, 0.0)
    steep_y0 = tl.where(in_y0, 1.0, 0.0)
    steep_y1 = tl.where(in_y1, 1.0, 0.0)
    in_y0 = in_y0 & live
    in_y1 = in_y1 & live
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
    return of_weight, of_x * weight, of_y * weight
