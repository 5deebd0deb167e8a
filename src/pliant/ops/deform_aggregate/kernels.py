"""Triton kernels of deformable aggregation; gpu.py launches them.

A line is one group of one output cell. A program sums, or spreads, the points of some lines, a point at a time, as
attention does (_sample_kernels.py). reference.py is the specification.

Legend: BLOCK_N lines, BLOCK_C channels of a group, all of them. Pairs end in _y and _x.
"""

import triton
import triton.language as tl

from pliant.ops._sample_kernels import gathered, spread

_SIZES = ["lines", "height", "width", "out_height", "out_width", "points"]


@triton.jit
def _position(
    offset, place, live, point, row, column, kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y,
    dilation_x, scale, REMOVE_CENTER: tl.constexpr,
):  # fmt: skip
    """Where a point of every line lies in the input, y and x."""
    if REMOVE_CENTER:
        point += point >= kernel_y * kernel_x // 2
    center_y = dilation_y * (kernel_y - 1) // 2
    center_x = dilation_x * (kernel_x - 1) // 2
    tap_y = center_y - padding_y + (point % kernel_y * dilation_y - center_y) * scale
    tap_x = center_x - padding_x + (point // kernel_y * dilation_x - center_x) * scale
    x = tl.load(offset + 2 * place, mask=live, other=0.0).to(tl.float32)
    y = tl.load(offset + 2 * place + 1, mask=live, other=0.0).to(tl.float32)
    return (row * stride_y).to(tl.float32) + tap_y + y * scale, (column * stride_x).to(tl.float32) + tap_x + x * scale


@triton.jit(do_not_specialize=_SIZES)
def forward(
    input, offset, mask, out, lines, height, width, groups, channels, out_height, out_width, points,
    kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, scale,
    REMOVE_CENTER: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = line < lines
    group = line % groups
    column = line // groups % out_width
    row = line // groups // out_width % out_height
    image_rows = line // groups // out_width // out_height * height * width
    start = tl.zeros((BLOCK_N,), INDEX)
    channel = tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for point in range(points):
        place = line * points + point
        y, x = _position(
            offset, place, live, point, row, column, kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x,
            dilation_y, dilation_x, scale, REMOVE_CENTER,
        )  # fmt: skip
        weight = tl.load(mask + place, mask=live, other=0.0).to(tl.float32)
        total += gathered(input, y, x, weight, live, start, height, width, image_rows, groups, group, channel, channels,
                          INDEX)  # fmt: skip
    wanted = live[:, None] & (channel < channels)[None, :]
    tl.store(out + (line * channels)[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=_SIZES)
def backward(
    grad, input, offset, mask, grad_input, grad_offset, grad_mask, lines, height, width, groups, channels, out_height,
    out_width, points, kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, scale,
    REMOVE_CENTER: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As the forward: cells get their part of the gradient, and are multiplied with it for offset and mask."""
    line = tl.program_id(0).to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = line < lines
    group = line % groups
    column = line // groups % out_width
    row = line // groups // out_width % out_height
    image_rows = line // groups // out_width // out_height * height * width
    start = tl.zeros((BLOCK_N,), INDEX)
    channel = tl.arange(0, BLOCK_C)
    wanted = live[:, None] & (channel < channels)[None, :]
    above = tl.load(grad + (line * channels)[:, None] + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
    for point in range(points):
        place = line * points + point
        y, x = _position(
            offset, place, live, point, row, column, kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x,
            dilation_y, dilation_x, scale, REMOVE_CENTER,
        )  # fmt: skip
        weight = tl.load(mask + place, mask=live, other=0.0).to(tl.float32)
        of_weight, of_x, of_y = spread(
            input, grad_input, above, y, x, weight, live, start, height, width, image_rows, groups, group, channel,
            channels, INDEX,
        )  # fmt: skip
        type = grad_offset.dtype.element_ty
        tl.store(grad_offset + 2 * place, (of_x * scale).to(type), mask=live)
        tl.store(grad_offset + 2 * place + 1, (of_y * scale).to(type), mask=live)
        tl.store(grad_mask + place, of_weight.to(grad_mask.dtype.element_ty), mask=live)
