"""Triton kernels of deformable convolution by columns; columns.py launches them.

A chunk is a run of images, or of rows of an image. Its columns are a matrix [cells, taps * C], which torch multiplies.
The input's gradient is gathered, not scattered: there are lists of the samples between each four cells of the input, in
compressed sparse rows, so that no channel is added by atomics.

Legend: BLOCK_P output cells, BLOCK_C channels, BLOCK_N cells of the input; `sampled` channels of an offset group.
"""

import triton
import triton.language as tl

from pliant.ops.deform_conv2d.kernels import _GRID, _STEPS, _corners, _modulation, _moved, _values

_SIZES = ["out_height", "out_width", "height", "width"]
_CHUNK = ["first_image", "first_row", "images", "rows"]


@triton.jit
def _cells_of_chunk(tile, first_image, first_row, images, rows, width, BLOCK: tl.constexpr, PATCH: tl.constexpr):
    """The cells of a tile: which exist, their places in the chunk, images, rows, columns, and places in the map."""
    lane = tl.arange(0, BLOCK)
    if PATCH == 0:
        of_chunk = tile * BLOCK + lane
        live = of_chunk < images * rows * width
        image = of_chunk // (rows * width)
        y = of_chunk // width % rows
        x = of_chunk % width
    else:
        across = tl.cdiv(width, PATCH)
        down = tl.cdiv(rows, BLOCK // PATCH)
        y = tile // across % down * (BLOCK // PATCH) + lane // PATCH
        x = tile % across * PATCH + lane % PATCH
        image = tile // across // down + tl.zeros_like(x)
        live = (y < rows) & (x < width)
        of_chunk = (image * rows + y) * width + x
    y += first_row
    image += first_image
    return live, of_chunk, image, y.to(tl.int32), x.to(tl.int32), y * width + x


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS, *_CHUNK, "parts"])
def columns(
    input, offset, mask, columns, grad_offset, grad_mask,
    first_image, first_row, images, rows, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, sampled, parts,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PATCH: tl.constexpr, UNROLL: tl.constexpr,
):
    # fmt: on
    """A program is a tile of cells, an offset group, and one of `parts` shares of the taps.

    BACKWARD finds the columns' gradients in their places, multiplies them with what is sampled for the gradients of
    offset and mask, and leaves the columns there.
    """
    live, of_chunk, image, cell_y, cell_x, cell = _cells_of_chunk(
        tl.program_id(0).to(INDEX), first_image, first_row, images, rows, out_width, BLOCK_P, PATCH
    )
    offset_group = tl.program_id(1)
    out_area = out_height * out_width
    for tap in range(tl.program_id(2), TAPS, parts):
        line = (offset_group * TAPS + tap).to(INDEX)
        base_y = cell_y * stride_y - padding_y + tap // KERNEL_WIDTH * dilation_y
        base_x = cell_x * stride_x - padding_x + tap % KERNEL_WIDTH * dilation_x
        y, x = _moved(base_y, base_x, offset, image, line, cell, live, offset_image, offset_channel, offset_cell)
        modulation = _modulation(mask, image, line, cell, live, mask_image, mask_channel, mask_cell, MASKED)
        row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1 = _corners(
            y, x, image, live, height, width, AUTHORS
        )
        w00 = wy0 * wx0 * modulation
        w01 = wy0 * wx1 * modulation
        w10 = wy1 * wx0 * modulation
        w11 = wy1 * wx1 * modulation
        if BACKWARD:
            dot00 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
            dot01 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
            dot10 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
            dot11 = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        start = offset_group * sampled
        place = columns + (of_chunk * TAPS + tap) * channels
        for span in range(start, start + sampled, BLOCK_C * UNROLL):
            for block in tl.static_range(UNROLL):
                first = span + block * BLOCK_C
                if EVEN:
                    first = tl.multiple_of(first, BLOCK_C)
                channel = first + tl.arange(0, BLOCK_C)
                in_group = channel < start + sampled
                at = place[:, None] + channel[None, :]
                wanted = live[:, None]
                if not EVEN:
                    wanted = wanted & in_group[None, :]
                value00 = _values(input, row00 * channels, in00, channel, in_group, EVEN)
                value01 = _values(input, row01 * channels, in01, channel, in_group, EVEN)
                value10 = _values(input, row10 * channels, in10, channel, in_group, EVEN)
                value11 = _values(input, row11 * channels, in11, channel, in_group, EVEN)
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
            sum00 = tl.sum(dot00, 1)
            sum01 = tl.sum(dot01, 1)
            sum10 = tl.sum(dot10, 1)
            sum11 = tl.sum(dot11, 1)
            of_line = (image * (tl.num_programs(1) * TAPS) + line) * out_area
            if MASKED:
                of_mask = sum00 * (wy0 * wx0) + sum01 * (wy0 * wx1) + sum10 * (wy1 * wx0) + sum11 * (wy1 * wx1)
                tl.store(grad_mask + of_line + cell, of_mask.to(grad_mask.dtype.element_ty), mask=live)
            of_y = (sum00 * (sy0 * wx0) + sum01 * (sy0 * wx1) + sum10 * (sy1 * wx0) + sum11 * (sy1 * wx1)) * modulation
            of_x = (sum00 * (wy0 * sx0) + sum01 * (wy0 * sx1) + sum10 * (wy1 * sx0) + sum11 * (wy1 * sx1)) * modulation
            at_y = grad_offset + 2 * of_line + cell
            tl.store(at_y, of_y.to(grad_offset.dtype.element_ty), mask=live)
            tl.store(at_y + out_area, of_x.to(grad_offset.dtype.element_ty), mask=live)


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS, *_CHUNK])
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
    live, of_chunk, image, cell_y, cell_x, cell = _cells_of_chunk(
        tl.program_id(0).to(INDEX), first_image, first_row, images, rows, out_width, BLOCK_P, 0
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
    grad_columns, bounds, samples, fractions, modulations, grad_input, images, height, width, channels, sampled,
    MASKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr, ADD: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PATCH: tl.constexpr,
):
    # fmt: on
    """A program is a tile of the input's cells and of its channels: the weighted sum of the samples that read them."""
    live, row, image, y, x, _ = _cells_of_chunk(tl.program_id(0), 0, 0, images, height, width, BLOCK_N, PATCH)
    blocks = tl.cdiv(sampled, BLOCK_C)
    offset_group = tl.program_id(1) // blocks
    first = offset_group * sampled + tl.program_id(1) % blocks * BLOCK_C
    if EVEN:
        first = tl.multiple_of(first, BLOCK_C)
    channel = first + tl.arange(0, BLOCK_C)
    in_group = channel < (offset_group + 1) * sampled
    of_image = (offset_group * images + image) * (height + 1)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
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
            place = grad_columns + (sample.to(INDEX) * channels)[:, None] + channel[None, :]
            total += tl.load(place, mask=wanted, other=0.0).to(tl.float32) * weight[:, None]
    at = grad_input + (row.to(INDEX) * channels)[:, None] + channel[None, :]
    wanted = live[:, None]
    if not EVEN:
        wanted = wanted & in_group[None, :]
    if ADD:
        total += tl.load(at, mask=wanted, other=0.0).to(tl.float32)
    tl.store(at, total.to(grad_input.dtype.element_ty), mask=wanted)
