"""Triton kernel of deformable convolution by columns; columns.py launches it.

A chunk is a run of images, or of rows of an image. Its columns are a matrix [cells, taps * C], which torch multiplies.

Legend: BLOCK_P output cells, BLOCK_C channels, PACK offset groups of a tile; `sampled` channels of an offset group.
"""

import triton
import triton.language as tl

from pliant.ops.deform_conv2d.kernels import (
    _CHUNK,
    _GRID,
    _MAPS,
    _STEPS,
    _values,
    cells_of_chunk,
    corners_of_tap,
    offset_groups_of,
    position_gradients,
)


# fmt: off
@triton.jit(do_not_specialize=[*_MAPS, *_GRID, *_STEPS, *_CHUNK, "parts"])
def columns(
    input, offset, mask, columns, grad_offset, grad_mask,
    first_image, first_row, images, rows, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, sampled, parts,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PATCH: tl.constexpr, PACK: tl.constexpr, UNROLL: tl.constexpr,
):
    # fmt: on
    """A program is a tile of cells, PACK offset groups, and one of `parts` shares of the taps.

    BACKWARD finds the columns' gradients in their places, multiplies them with what is sampled for the gradients of
    offset and mask, and leaves the columns there.
    """
    live, of_chunk, image, cell_y, cell_x, cell = cells_of_chunk(
        tl.program_id(0).to(INDEX), first_image, first_row, images, rows, out_width, BLOCK_P, PATCH, PACK
    )
    offset_group, start, base = offset_groups_of(tl.program_id(1), sampled, BLOCK_P, PACK, BLOCK_C if EVEN else 1)
    for tap in range(tl.program_id(2), TAPS, parts):
        line = (offset_group * TAPS + tap).to(INDEX)
        (
            row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, modulation,
        ) = corners_of_tap(
            offset, mask, line, tap, cell_y * stride_y - padding_y, cell_x * stride_x - padding_x, image, cell, live,
            height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
            mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
        )  # fmt: skip
        w00 = wy0 * wx0 * modulation
        w01 = wy0 * wx1 * modulation
        w10 = wy1 * wx0 * modulation
        w11 = wy1 * wx1 * modulation
        if BACKWARD:
            dot00 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            dot01 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            dot10 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
            dot11 = tl.zeros((BLOCK_P * PACK, BLOCK_C), tl.float32)
        place = columns + (of_chunk * TAPS + tap) * channels + start
        for span in range(0, sampled, BLOCK_C * UNROLL):
            for block in tl.static_range(UNROLL):
                first = span + block * BLOCK_C
                if EVEN:
                    first = tl.multiple_of(first, BLOCK_C)
                channel = base + first + tl.arange(0, BLOCK_C)
                in_group = channel < base + sampled
                at = place[:, None] + channel[None, :]
                wanted = live[:, None]
                if not EVEN:
                    wanted = wanted & in_group[None, :]
                value00 = _values(input, row00 * channels + start, in00, channel, in_group, EVEN)
                value01 = _values(input, row01 * channels + start, in01, channel, in_group, EVEN)
                value10 = _values(input, row10 * channels + start, in10, channel, in_group, EVEN)
                value11 = _values(input, row11 * channels + start, in11, channel, in_group, EVEN)
                if BACKWARD:
                    above = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
                    dot00 += above * value00
                    dot01 += above * value01
                    dot10 += above * value10
                    dot11 += above * value11
                gathered = value00 * w00[:, None]
                gathered += value01 * w01[:, None]
                gathered += value10 * w10[:, None]
                gathered += value11 * w11[:, None]
                tl.store(at, gathered.to(columns.dtype.element_ty), mask=wanted)
        if BACKWARD:
            position_gradients(
                grad_offset, grad_mask, image * (channels // sampled * TAPS) + line, cell, out_height * out_width, live,
                modulation, tl.sum(dot00, 1), tl.sum(dot01, 1), tl.sum(dot10, 1), tl.sum(dot11, 1),
                wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, MASKED,
            )  # fmt: skip
