"""Triton kernels of the input's gradient without atomic additions of channels; input_gradient.py launches them.

The gradient is gathered, not scattered: there are lists of the samples between each four cells of the input, in
compressed sparse rows, and each cell sums those that read it.

Legend: BLOCK_P output cells, BLOCK_N cells of the input, BLOCK_C channels, PACK offset groups of a tile; `sampled`
channels of an offset group.
"""

import triton
import triton.language as tl

from pliant.ops.deform_conv2d.kernels import (
    _CHUNK,
    _GRID,
    _MAPS,
    _STEPS,
    _modulation,
    _moved,
    block_of_channels,
    cells_of_chunk,
)


# fmt: off
@triton.jit(do_not_specialize=[*_MAPS, *_GRID, *_STEPS, *_CHUNK])
def list_samples(
    offset, mask, bounds, samples, fractions, modulations,
    first_image, first_row, images, rows, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, INDEX: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, FILL: tl.constexpr, BLOCK_P: tl.constexpr,
):
    # fmt: on
    """The samples between each four cells of the input: first how many there are, then, FILL, a list of them.

    Lists are in the order of the upper left cell, [offset groups, images, height + 1, width + 1], from cell -1 on each
    axis. `bounds` is counted up; after a running sum it holds where each list ends, and filling leaves where it begins.
    A program is a tile of cells, a tap and an offset group.
    """
    live, of_chunk, image, cell_y, cell_x, cell = cells_of_chunk(
        tl.program_id(0).to(INDEX), first_image, first_row, images, rows, out_width, BLOCK_P, 0, 1
    )
    tap = tl.program_id(1)
    offset_group = tl.program_id(2)
    line = (offset_group * TAPS + tap).to(INDEX)
    base_y = cell_y * stride_y - padding_y + tap // KERNEL_WIDTH * dilation_y
    base_x = cell_x * stride_x - padding_x + tap % KERNEL_WIDTH * dilation_x
    y, x = _moved(base_y, base_x, offset, image, line, cell, live, offset_image, offset_channel, offset_cell)
    least = 0.0 if AUTHORS else -1.0
    floor_y = tl.floor(y)
    floor_x = tl.floor(x)
    listed = live & (floor_y >= least) & (floor_y < height) & (floor_x >= least) & (floor_x < width)
    list_y = tl.where(listed, floor_y, 0.0).to(tl.int32) + 1
    list_x = tl.where(listed, floor_x, 0.0).to(tl.int32) + 1
    of_image = (offset_group * images + image - first_image) * (height + 1)
    bound = bounds + (of_image + list_y) * (width + 1) + list_x
    if FILL:
        at = tl.atomic_add(bound, -1, mask=listed, sem="relaxed") - 1
        fraction_y = y - floor_y
        fraction_x = x - floor_x
        if AUTHORS:
            fraction_y = tl.where(list_y >= height, 0.0, fraction_y)
            fraction_x = tl.where(list_x >= width, 0.0, fraction_x)
        tl.store(samples + at, (of_chunk * TAPS + tap).to(tl.int32), mask=listed)
        tl.store(fractions + 2 * at, fraction_y, mask=listed)
        tl.store(fractions + 2 * at + 1, fraction_x, mask=listed)
        if MASKED:
            modulation = _modulation(mask, image, line, cell, live, mask_image, mask_channel, mask_cell, MASKED)
            tl.store(modulations + at, modulation, mask=listed)
    else:
        tl.atomic_add(bound, 1, mask=listed, sem="relaxed")


# fmt: off
@triton.jit(do_not_specialize=["images", "height", "width"])
def gather(
    above, factors, bounds, samples, fractions, modulations, grad_input, images, height, width, channels, sampled,
    MASKED: tl.constexpr, DEPTHWISE: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, ADD: tl.constexpr,
    TAPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PATCH: tl.constexpr, PACK: tl.constexpr,
):
    # fmt: on
    """A program is a tile of the input's cells and of its channels: the weighted sum of the samples that read them.

    `above` has the columns' gradients [cells, taps, C]. DEPTHWISE, these are products: `above` has the output's
    gradient [cells, C], and `factors` the weight [taps, C].
    """
    live, row, image, y, x, _ = cells_of_chunk(tl.program_id(0), 0, 0, images, height, width, BLOCK_N, PATCH, PACK)
    offset_group, start, channel, in_group = block_of_channels(
        tl.program_id(1), sampled, BLOCK_N, PACK, BLOCK_C, EVEN
    )
    of_image = (offset_group * images + image) * (height + 1)
    total = tl.zeros((BLOCK_N * PACK, BLOCK_C), tl.float32)
    for lower in tl.static_range(2):
        # Samples whose upper left cell is in the row above, which is the list's own row, then in this row; they lie
        # left of this cell, then right.
        bound = bounds + (of_image + y + lower) * (width + 1) + x
        begin = tl.load(bound, mask=live, other=0)
        middle = tl.load(bound + 1, mask=live, other=0)
        count = tl.load(bound + 2, mask=live, other=0) - begin
        for index in range(tl.max(count, axis=0)):
            read = index < count
            at = begin + index
            sample = tl.load(samples + at, mask=read, other=0)
            weight_y = tl.load(fractions + 2 * at, mask=read, other=0.0)
            weight_x = tl.load(fractions + 2 * at + 1, mask=read, other=0.0)
            if lower == 1:
                weight_y = 1 - weight_y
            weight = weight_y * tl.where(at < middle, weight_x, 1 - weight_x)
            if MASKED:
                weight *= tl.load(modulations + at, mask=read, other=0.0)
            wanted = read[:, None]
            if not EVEN:
                wanted = wanted & in_group[None, :]
            if DEPTHWISE:
                place = (sample // TAPS).to(INDEX) * channels + start
                value = tl.load(above + place[:, None] + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
                place = sample % TAPS * channels + start
                value *= tl.load(factors + place[:, None] + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
            else:
                place = sample.to(INDEX) * channels + start
                value = tl.load(above + place[:, None] + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
            total += value * weight[:, None]
    at = grad_input + (row.to(INDEX) * channels + start)[:, None] + channel[None, :]
    wanted = live[:, None]
    if not EVEN:
        wanted = wanted & in_group[None, :]
    if ADD:
        total += tl.load(at, mask=wanted, other=0.0).to(tl.float32)
    tl.store(at, total.to(grad_input.dtype.element_ty), mask=wanted)
