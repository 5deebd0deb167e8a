"""Triton kernels of depthwise deformable convolution; depthwise.py launches them.

Each output channel has one input channel: nothing is a matrix product, and no column is written to memory. The weight
is [taps, C]. The input's gradient is gathered, by the kernels of input_gradient_kernels.py.

Legend: BLOCK_P output cells, BLOCK_C channels, PACK offset groups of a tile; `sampled` channels of an offset group.
"""

import triton
import triton.language as tl

from pliant.ops.deform_conv2d.kernels import (
    _GRID,
    _SIZES,
    _STEPS,
    _values,
    block_of_channels,
    cells_of,
    corner_rows,
    corners_of_tap,
    offset_groups_of,
    position_gradients,
    tiles_of,
)


@triton.jit
def _factors(weight, tap, start, channel, live_channel, channels, PACK: tl.constexpr, EVEN: tl.constexpr):
    """A tap's weights of a tile's channels, to multiply [lines, BLOCK_C] with."""
    of_tap = weight + tap * channels + start
    at = (of_tap + channel)[None, :] if PACK == 1 else of_tap[:, None] + channel[None, :]
    if EVEN:
        return tl.load(at).to(tl.float32)
    else:  # noqa: RET505  (the compiler wants both branches)
        return tl.load(at, mask=live_channel[None, :], other=0.0).to(tl.float32)


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS])
def depthwise_forward(
    input, offset, mask, weight, bias, out,
    cells, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, sampled,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell, out_image, out_channel, out_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PATCH: tl.constexpr, PACK: tl.constexpr,
):
    # fmt: on
    """A program is a tile of cells and a block of channels of PACK offset groups."""
    live, image, cell_y, cell_x, cell = cells_of(
        tl.program_id(0).to(INDEX), cells, out_height, out_width, BLOCK_P, PATCH, PACK
    )
    offset_group, start, channel, in_group = block_of_channels(
        tl.program_id(1), sampled, BLOCK_P, PACK, BLOCK_C, EVEN
    )
    regular_y = cell_y * stride_y - padding_y
    regular_x = cell_x * stride_x - padding_x

    total = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
    for tap in range(TAPS):
        row00, row01, row10, row11, w00, w01, w10, w11 = corner_rows(
            offset, mask, (offset_group * TAPS + tap).to(INDEX), tap, regular_y, regular_x, image, cell, live,
            height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
            mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
        )  # fmt: skip
        sample = _values(input, row00 * channels + start, row00 >= 0, channel, in_group, EVEN) * w00[:, None]
        sample += _values(input, row01 * channels + start, row01 >= 0, channel, in_group, EVEN) * w01[:, None]
        sample += _values(input, row10 * channels + start, row10 >= 0, channel, in_group, EVEN) * w10[:, None]
        sample += _values(input, row11 * channels + start, row11 >= 0, channel, in_group, EVEN) * w11[:, None]
        total += sample * _factors(weight, tap, start, channel, in_group, channels, PACK, EVEN)

    if BIASED:
        total += _factors(bias, 0, start, channel, in_group, channels, PACK, EVEN)
    at = (out + image * out_image + cell * out_cell + start * out_channel)[:, None] + (channel * out_channel)[None, :]
    wanted = live[:, None]
    if not EVEN:
        wanted = wanted & in_group[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=wanted)


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS, "parts"])
def depthwise_backward(
    input, offset, mask, weight, grad, grad_offset, grad_mask, grad_weight,
    cells, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, sampled, parts,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell, out_image, out_channel, out_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PATCH: tl.constexpr, PACK: tl.constexpr,
):
    # fmt: on
    """A program is a share of the tiles of cells, PACK offset groups, and one of `parts` shares of the taps.

    The gradients of offset and mask are whole when it ends. That of the weight is a sum for each share of the tiles,
    [shares, taps, C], which the launcher adds up.
    """
    offset_group, start, base = offset_groups_of(tl.program_id(1), sampled, BLOCK_P, PACK, BLOCK_C if EVEN else 1)
    tiles = tiles_of(cells, out_height, out_width, BLOCK_P, PATCH)
    for tile in range(tl.program_id(0).to(INDEX), tiles, tl.num_programs(0)):
        live, image, cell_y, cell_x, cell = cells_of(
            tile, cells, out_height, out_width, BLOCK_P, PATCH, PACK
        )
        of_cell = image * out_image + cell * out_cell + start * out_channel
        for tap in range(tl.program_id(2), TAPS, parts):
            line = (offset_group * TAPS + tap).to(INDEX)
            (
                row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, modulation,
            ) = corners_of_tap(
                offset, mask, line, tap, cell_y * stride_y - padding_y, cell_x * stride_x - padding_x,
                image, cell, live, height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
                mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
            )  # fmt: skip
            w00 = wy0 * wx0 * modulation
            w01 = wy0 * wx1 * modulation
            w10 = wy1 * wx0 * modulation
            w11 = wy1 * wx1 * modulation
            dot00 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            dot01 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            dot10 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            dot11 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            for first in range(0, sampled, BLOCK_C):
                if EVEN:
                    first = tl.multiple_of(first, BLOCK_C)
                channel = base + first + tl.arange(0, BLOCK_C)
                in_group = channel < base + sampled
                wanted = live[:, None]
                if not EVEN:
                    wanted = wanted & in_group[None, :]
                value00 = _values(input, row00 * channels + start, in00, channel, in_group, EVEN)
                value01 = _values(input, row01 * channels + start, in01, channel, in_group, EVEN)
                value10 = _values(input, row10 * channels + start, in10, channel, in_group, EVEN)
                value11 = _values(input, row11 * channels + start, in11, channel, in_group, EVEN)
                at = grad + of_cell[:, None] + (channel * out_channel)[None, :]
                above = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
                factor = above * _factors(weight, tap, start, channel, in_group, channels, PACK, EVEN)
                dot00 += factor * value00
                dot01 += factor * value01
                dot10 += factor * value10
                dot11 += factor * value11
                sample = value00 * w00[:, None]
                sample += value01 * w01[:, None]
                sample += value10 * w10[:, None]
                sample += value11 * w11[:, None]
                of_weight = tl.sum(tl.reshape(above * sample, (BLOCK_P, PACK * BLOCK_C)), 0)
                lane = tl.arange(0, PACK * BLOCK_C)
                share = grad_weight + (tl.program_id(0) * TAPS + tap).to(INDEX) * channels
                at = share + tl.program_id(1) * PACK * sampled + first + lane
                wanted = lane < sampled * PACK - first
                of_weight += tl.load(at, mask=wanted & (tile > tl.program_id(0)), other=0.0)
                tl.store(at, of_weight, mask=wanted)
            position_gradients(
                grad_offset, grad_mask, image * (channels // sampled * TAPS) + line, cell, out_height * out_width, live,
                modulation, tl.sum(dot00, 1), tl.sum(dot01, 1), tl.sum(dot10, 1), tl.sum(dot11, 1),
                wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, MASKED,
            )  # fmt: skip
        tl.debug_barrier()  # before the next tile's sums are added to those in memory
