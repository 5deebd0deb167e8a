"""Triton kernels of deformable convolution; gpu.py launches them.

Maps are laid out channels last, weights as [O, taps, C / groups]: what a sample reads is a row. A unit is a run of
channels that share a group and an offset group. Sums are float32 throughout.

Legend: P output cells of all images, C input channels, O output channels; BLOCK_P, BLOCK_C, BLOCK_O a tile of them. A
line of a tile is a cell. Where offset groups have few channels, it is one of PACK offset groups of a cell, which lie
side by side.
"""

import triton
import triton.language as tl

# Not worth a variant of the kernel for each of their values.
_MAPS = ["out_height", "out_width", "height", "width"]
_SIZES = ["cells", *_MAPS]
_STEPS = ["offset_image", "offset_channel", "mask_image", "mask_channel"]  # nothing is loaded along these
_CHUNK = ["first_image", "first_row", "images", "rows"]
_GRID = ["stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x"]


@triton.jit
def _axis(position, size, AUTHORS: tl.constexpr):
    """The two cells around a position on one axis: cells, whether they are read, weights, and the weights' slopes."""
    floor = tl.floor(position)
    # Within -2 .. size whatever the position, so that the conversion is defined; NaN goes to -2.
    low = tl.where(floor >= -2, tl.where(floor <= size, floor, size), -2).to(tl.int32)
    fraction = position - floor
    steep = tl.full(position.shape, 1.0, tl.float32)
    high = low + 1
    in_low = (low >= 0) & (low < size)
    in_high = (high >= 0) & (high < size)
    if AUTHORS:
        last = low >= size - 1
        fraction = tl.where(last, 0.0, fraction)
        steep = tl.where(last, 0.0, steep)
        high = tl.where(last, low, high)
        in_high = in_low
    nan = position != position
    weight_low = tl.where(in_low | nan, 1 - fraction, 0.0)
    weight_high = tl.where(in_high | nan, fraction, 0.0)
    slope_low = tl.where(in_low, -steep, 0.0)
    slope_high = tl.where(in_high, steep, 0.0)
    return low, high, in_low, in_high, weight_low, weight_high, slope_low, slope_high


@triton.jit
def cells_of(
    tile, cells, out_height, out_width, BLOCK_P: tl.constexpr, PATCH: tl.constexpr, PACK: tl.constexpr = 1
):  # fmt: skip
    """The output cells of a tile: which exist, their images, rows, columns, and places in the map.

    Tiles are runs of cells across images, or patches PATCH cells wide: their samples share more of the input. Each cell
    is there PACK times.
    """
    lane = tl.arange(0, BLOCK_P * PACK) // PACK
    if PATCH == 0:
        place = tile * BLOCK_P + lane
        live = place < cells
        image = place // (out_height * out_width)
        cell = place % (out_height * out_width)
        y = cell // out_width
        x = cell % out_width
    else:
        across = tl.cdiv(out_width, PATCH)
        down = tl.cdiv(out_height, BLOCK_P // PATCH)
        y = tile // across % down * (BLOCK_P // PATCH) + lane // PATCH
        x = tile % across * PATCH + lane % PATCH
        image = tile // across // down + tl.zeros_like(x)
        live = (y < out_height) & (x < out_width)
        cell = y * out_width + x
    return live, image, y.to(tl.int32), x.to(tl.int32), cell


@triton.jit
def cells_of_chunk(
    tile, first_image, first_row, images, rows, width, BLOCK: tl.constexpr, PATCH: tl.constexpr, PACK: tl.constexpr
):  # fmt: skip
    """The cells of a tile's lines: which exist, their places in the chunk, images, rows, columns, places in the map."""
    lane = tl.arange(0, BLOCK * PACK) // PACK
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


@triton.jit
def offset_groups_of(block, sampled, BLOCK: tl.constexpr, PACK: tl.constexpr, ALIGNED: tl.constexpr):
    """The offset groups of a tile's lines and where their channels start, by line, beside the tile's own start.

    A tile of one offset group has all of the start itself: lines would add it to the place of each corner.
    """
    if PACK == 1:
        return block, 0, tl.multiple_of(block * sampled, ALIGNED)
    else:  # noqa: RET505  (the compiler wants both branches)
        offset_group = block * PACK + tl.arange(0, BLOCK * PACK) % PACK
        return offset_group, tl.multiple_of(offset_group * sampled, [ALIGNED]), 0


@triton.jit
def block_of_channels(
    program, sampled, BLOCK: tl.constexpr, PACK: tl.constexpr, BLOCK_C: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """What `offset_groups_of` has of groups and starts, the channels of a program's block, and which of them exist."""
    blocks = tl.cdiv(sampled, BLOCK_C)
    offset_group, start, base = offset_groups_of(program // blocks, sampled, BLOCK, PACK, BLOCK_C if EVEN else 1)
    first = program % blocks * BLOCK_C
    if EVEN:
        first = tl.multiple_of(first, BLOCK_C)
    channel = base + first + tl.arange(0, BLOCK_C)
    return offset_group, start, channel, channel < base + sampled


@triton.jit
def tiles_of(cells, out_height, out_width, BLOCK_P: tl.constexpr, PATCH: tl.constexpr):
    """How many tiles of cells there are."""
    if PATCH == 0:
        return tl.cdiv(cells, BLOCK_P)
    else:  # noqa: RET505  (the compiler wants both branches)
        images = cells // (out_height * out_width)
        return images * tl.cdiv(out_width, PATCH) * tl.cdiv(out_height, BLOCK_P // PATCH)


@triton.jit
def _moved(base_y, base_x, offset, image, line, cell, live, image_step, channel_step, cell_step):
    """Regular places moved by the offsets of `line` (offset group and tap)."""
    at = offset + image * image_step + 2 * line * channel_step + cell * cell_step
    y = base_y.to(tl.float32) + tl.load(at, mask=live, other=0.0).to(tl.float32)
    x = base_x.to(tl.float32) + tl.load(at + channel_step, mask=live, other=0.0).to(tl.float32)
    return y, x


@triton.jit
def _modulation(mask, image, line, cell, live, image_step, channel_step, cell_step, MASKED: tl.constexpr):
    if MASKED:
        at = mask + image * image_step + line * channel_step + cell * cell_step
        return tl.load(at, mask=live, other=0.0).to(tl.float32)
    else:  # noqa: RET505  (the compiler wants both branches)
        return tl.full(cell.shape, 1.0, tl.float32)


@triton.jit
def _corners(y, x, image, live, height, width, AUTHORS: tl.constexpr):
    """The four cells around positions: rows of the map, whether they are read; then weights and slopes by axis."""
    y0, y1, in_y0, in_y1, wy0, wy1, sy0, sy1 = _axis(y, height, AUTHORS)
    x0, x1, in_x0, in_x1, wx0, wx1, sx0, sx1 = _axis(x, width, AUTHORS)
    upper = (image * height + y0) * width
    lower = (image * height + y1) * width
    in_y0 = in_y0 & live
    in_y1 = in_y1 & live
    return (
        upper + x0, upper + x1, lower + x0, lower + x1,
        in_y0 & in_x0, in_y0 & in_x1, in_y1 & in_x0, in_y1 & in_x1,
        wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1,
    )  # fmt: skip


@triton.jit
def _values(input, row, inside, channel, live_channel, EVEN: tl.constexpr):
    """Channels of one corner, [BLOCK_P, BLOCK_C], zero outside the map."""
    mask = inside[:, None]
    if not EVEN:
        mask = mask & live_channel[None, :]
    return tl.load(input + row[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add(grad_input, row, inside, channel, live_channel, value, EVEN: tl.constexpr):
    """Add to the channels of one corner."""
    mask = inside[:, None]
    if not EVEN:
        mask = mask & live_channel[None, :]
    tl.atomic_add(grad_input + row[:, None] + channel[None, :], value, mask=mask, sem="relaxed")


@triton.jit
def position_gradients(
    grad_offset, grad_mask, line, cell, out_area, live, modulation, dot00, dot01, dot10, dot11,
    wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, MASKED: tl.constexpr,
):  # fmt: skip
    """Store the gradients of offset and mask: their row in the mask's is `line`, and each corner has a dot product."""
    if MASKED:
        of_mask = dot00 * (wy0 * wx0) + dot01 * (wy0 * wx1) + dot10 * (wy1 * wx0) + dot11 * (wy1 * wx1)
        tl.store(grad_mask + line * out_area + cell, of_mask.to(grad_mask.dtype.element_ty), mask=live)
    of_y = (dot00 * (sy0 * wx0) + dot01 * (sy0 * wx1) + dot10 * (sy1 * wx0) + dot11 * (sy1 * wx1)) * modulation
    of_x = (dot00 * (wy0 * sx0) + dot01 * (wy0 * sx1) + dot10 * (wy1 * sx0) + dot11 * (wy1 * sx1)) * modulation
    at_y = grad_offset + 2 * line * out_area + cell
    tl.store(at_y, of_y.to(grad_offset.dtype.element_ty), mask=live)
    tl.store(at_y + out_area, of_x.to(grad_offset.dtype.element_ty), mask=live)


# fmt: off
@triton.jit
def corners_of_tap(
    offset, mask, line, tap, regular_y, regular_x, image, cell, live, height, width, dilation_y, dilation_x,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
):
    # fmt: on
    """What `_corners` has for a tap's positions, and then the modulation. `line` has the offset group and the tap."""
    base_y = regular_y + tap // KERNEL_WIDTH * dilation_y
    base_x = regular_x + tap % KERNEL_WIDTH * dilation_x
    y, x = _moved(base_y, base_x, offset, image, line, cell, live, offset_image, offset_channel, offset_cell)
    row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1 = _corners(
        y, x, image, live, height, width, AUTHORS
    )
    modulation = _modulation(mask, image, line, cell, live, mask_image, mask_channel, mask_cell, MASKED)
    return (
        row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, modulation
    )  # fmt: skip


# fmt: off
@triton.jit
def corner_rows(
    offset, mask, line, tap, regular_y, regular_x, image, cell, live, height, width, dilation_y, dilation_x,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
):
    # fmt: on
    """The four cells around a tap's positions: rows of the map, -1 where none is read, and weights."""
    row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, _, _, _, _, modulation = corners_of_tap(
        offset, mask, line, tap, regular_y, regular_x, image, cell, live, height, width, dilation_y, dilation_x,
        offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
    )  # fmt: skip
    return (
        tl.where(in00, row00, -1), tl.where(in01, row01, -1), tl.where(in10, row10, -1), tl.where(in11, row11, -1),
        wy0 * wx0 * modulation, wy0 * wx1 * modulation, wy1 * wx0 * modulation, wy1 * wx1 * modulation,
    )  # fmt: skip


@triton.jit
def _corner(input, row, channels, channel, limit, EVEN: tl.constexpr):
    """Channels of one corner, [BLOCK_P, BLOCK_C], zero where none is read."""
    read = (row >= 0)[:, None]
    if not EVEN:
        read = read & (channel < limit)[None, :]
    # The product with `channels` comes last: that 16 divides it tells the compiler how wide it may load.
    return tl.load(input + (row * channels)[:, None] + channel[None, :], mask=read, other=0.0)


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS])
def forward(
    input, offset, mask, weight, bias, out,
    cells, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, group_channels, group_outs, offset_channels, unit,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell, out_image, out_channel, out_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, PATCH: tl.constexpr, EARLY: tl.constexpr,
):
    # fmt: on
    """A program is a tile of cells and of a group's output channels: gather columns and multiply, step by step.

    A step is a block of channels of one tap. Positions are computed once a tap, and carried: a thread would spend more
    on them than on the samples. EARLY loads a step's corners in the step before, into registers and through the first
    cache; else Triton's pipeline loads them, past it.
    """
    live, image, cell_y, cell_x, cell = cells_of(
        tl.program_id(0).to(INDEX), cells, out_height, out_width, BLOCK_P, PATCH
    )
    regular_y = cell_y * stride_y - padding_y
    regular_x = cell_x * stride_x - padding_x
    group = tl.program_id(2)
    of_group = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    live_out = of_group < group_outs
    filter = (group * group_outs + of_group).to(INDEX)
    of_filter = weight + filter * (TAPS * group_channels)
    lane = tl.arange(0, BLOCK_C)
    blocks = tl.cdiv(unit, BLOCK_C)
    steps = group_channels // unit * TAPS * blocks

    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    start = group * group_channels  # of the unit
    tap = 0
    block = 0
    row00, row01, row10, row11, w00, w01, w10, w11 = corner_rows(
        offset, mask, (start // offset_channels * TAPS).to(INDEX), 0, regular_y, regular_x, image, cell, live,
        height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
        mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
    )  # fmt: skip
    if EARLY:
        early00 = _corner(input, row00, channels, start + lane, start + unit, EVEN)
        early01 = _corner(input, row01, channels, start + lane, start + unit, EVEN)
        early10 = _corner(input, row10, channels, start + lane, start + unit, EVEN)
        early11 = _corner(input, row11, channels, start + lane, start + unit, EVEN)
    for step in range(steps):
        # Where this step reads its weights, before what follows moves on.
        factor_start = tap * group_channels + (start - group * group_channels) + block * BLOCK_C
        if EVEN:
            factor_start = tl.multiple_of(factor_start, BLOCK_C)
        left = unit - block * BLOCK_C
        channel = start + block * BLOCK_C + lane
        v00, v01, v10, v11 = w00, w01, w10, w11
        if not EARLY:
            value00 = _corner(input, row00, channels, channel, start + unit, EVEN)
            value01 = _corner(input, row01, channels, channel, start + unit, EVEN)
            value10 = _corner(input, row10, channels, channel, start + unit, EVEN)
            value11 = _corner(input, row11, channels, channel, start + unit, EVEN)
        block += 1
        if block == blocks:
            block = 0
            tap += 1
            if tap == TAPS:
                tap = 0
                start += unit
            if step + 1 < steps:
                row00, row01, row10, row11, w00, w01, w10, w11 = corner_rows(
                    offset, mask, (start // offset_channels * TAPS + tap).to(INDEX), tap, regular_y, regular_x, image,
                    cell, live, height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
                    mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
                )  # fmt: skip
            else:
                row00 = tl.full((BLOCK_P,), -1, INDEX)
                row01 = row00
                row10 = row00
                row11 = row00
        if EARLY:
            value00, value01, value10, value11 = early00, early01, early10, early11
            following = start + block * BLOCK_C
            if EVEN:
                following = tl.multiple_of(following, BLOCK_C)
            early00 = _corner(input, row00, channels, following + lane, start + unit, EVEN)
            early01 = _corner(input, row01, channels, following + lane, start + unit, EVEN)
            early10 = _corner(input, row10, channels, following + lane, start + unit, EVEN)
            early11 = _corner(input, row11, channels, following + lane, start + unit, EVEN)
        columns = value00.to(tl.float32) * v00[:, None]
        columns += value01.to(tl.float32) * v01[:, None]
        columns += value10.to(tl.float32) * v10[:, None]
        columns += value11.to(tl.float32) * v11[:, None]
        wanted = live_out[None, :]
        if not EVEN:
            wanted = wanted & (lane < left)[:, None]
        factor = tl.load(of_filter[None, :] + (factor_start + lane)[:, None], mask=wanted, other=0.0)
        columns = columns.to(factor.dtype).to(PRODUCT)
        total = tl.dot(columns, factor.to(PRODUCT), total, input_precision=PRECISION)

    if BIASED:
        total += tl.load(bias + filter, mask=live_out, other=0.0).to(tl.float32)[None, :]
    at = out + (image * out_image + cell * out_cell)[:, None] + (filter * out_channel)[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=live[:, None] & live_out[None, :])


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS])
def backward_samples(
    input, offset, mask, weight, grad, grad_input, grad_offset, grad_mask,
    cells, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, group_channels, group_outs, offset_channels, unit,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell, out_image, out_channel, out_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, PATCH: tl.constexpr,
):
    # fmt: on
    """A program is a tile of cells, a tap and an offset group: the columns' gradient, block by block of channels.

    It is scattered to the input's gradient, and multiplied with what was sampled for offset and mask; their
    gradients are contiguous, and whole when the program ends.
    """
    live, image, cell_y, cell_x, cell = cells_of(
        tl.program_id(0).to(INDEX), cells, out_height, out_width, BLOCK_P, PATCH
    )
    tap = tl.program_id(1)
    offset_group = tl.program_id(2)
    line = (offset_group * TAPS + tap).to(INDEX)
    (
        row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, modulation,
    ) = corners_of_tap(
        offset, mask, line, tap, cell_y * stride_y - padding_y, cell_x * stride_x - padding_x, image, cell, live,
        height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
        mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
    )  # fmt: skip
    of_cell = grad + image * out_image + cell * out_cell

    dot00 = tl.zeros((BLOCK_P,), tl.float32)
    dot01 = tl.zeros((BLOCK_P,), tl.float32)
    dot10 = tl.zeros((BLOCK_P,), tl.float32)
    dot11 = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(offset_group * offset_channels, (offset_group + 1) * offset_channels, unit):
        group = start // group_channels
        for first in range(start, start + unit, BLOCK_C):
            if EVEN:
                first = tl.multiple_of(first, BLOCK_C)
            channel = first + tl.arange(0, BLOCK_C)
            in_unit = channel < start + unit
            columns = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
            for first_out in range(0, group_outs, BLOCK_O):
                of_group = first_out + tl.arange(0, BLOCK_O)
                live_out = of_group < group_outs
                filter = (group * group_outs + of_group).to(INDEX)
                at = of_cell[:, None] + (filter * out_channel)[None, :]
                above = tl.load(at, mask=live[:, None] & live_out[None, :], other=0.0)
                wanted = live_out[:, None]
                if not EVEN:
                    wanted = wanted & in_unit[None, :]
                of_tap = weight + (filter * TAPS + tap) * group_channels - group * group_channels
                factor = tl.load(of_tap[:, None] + channel[None, :], mask=wanted, other=0.0)
                columns = tl.dot(above.to(PRODUCT), factor.to(PRODUCT), columns, input_precision=PRECISION)

            dot00 += tl.sum(columns * _values(input, row00 * channels, in00, channel, in_unit, EVEN), 1)
            dot01 += tl.sum(columns * _values(input, row01 * channels, in01, channel, in_unit, EVEN), 1)
            dot10 += tl.sum(columns * _values(input, row10 * channels, in10, channel, in_unit, EVEN), 1)
            dot11 += tl.sum(columns * _values(input, row11 * channels, in11, channel, in_unit, EVEN), 1)
            columns *= modulation[:, None]
            _add(grad_input, row00 * channels, in00, channel, in_unit, columns * (wy0 * wx0)[:, None], EVEN)
            _add(grad_input, row01 * channels, in01, channel, in_unit, columns * (wy0 * wx1)[:, None], EVEN)
            _add(grad_input, row10 * channels, in10, channel, in_unit, columns * (wy1 * wx0)[:, None], EVEN)
            _add(grad_input, row11 * channels, in11, channel, in_unit, columns * (wy1 * wx1)[:, None], EVEN)

    position_gradients(
        grad_offset, grad_mask, image * (tl.num_programs(2) * TAPS) + line, cell, out_height * out_width, live,
        modulation, dot00, dot01, dot10, dot11, wy0, wy1, wx0, wx1, sy0, sy1, sx0, sx1, MASKED,
    )  # fmt: skip


# fmt: off
@triton.jit(do_not_specialize=[*_SIZES, *_GRID, *_STEPS])
def backward_weight(
    input, offset, mask, grad, grad_weight,
    cells, out_height, out_width, height, width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    channels, group_channels, group_outs, offset_channels, unit,
    offset_image, offset_channel, offset_cell, mask_image, mask_channel, mask_cell, out_image, out_channel, out_cell,
    AUTHORS: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr, INDEX: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, TAPS: tl.constexpr, KERNEL_WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, PATCH: tl.constexpr,
):
    # fmt: on
    """A program is a tile of one tap's weights and a share of the cells; the shares are added in memory."""
    out_tiles = tl.cdiv(group_outs, BLOCK_O)
    unit_tiles = tl.cdiv(unit, BLOCK_C)
    tap = tl.program_id(0) // out_tiles % TAPS
    tile = tl.program_id(0) // out_tiles // TAPS
    start = tile // unit_tiles * unit
    first = start + tile % unit_tiles * BLOCK_C
    if EVEN:
        first = tl.multiple_of(first, BLOCK_C)
    channel = first + tl.arange(0, BLOCK_C)
    in_unit = channel < start + unit
    group = start // group_channels
    of_group = tl.program_id(0) % out_tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    live_out = of_group < group_outs
    filter = (group * group_outs + of_group).to(INDEX)
    line = (start // offset_channels * TAPS + tap).to(INDEX)

    total = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    tiles = tiles_of(cells, out_height, out_width, BLOCK_P, PATCH)
    for cell_tile in range(tl.program_id(1).to(INDEX), tiles, tl.num_programs(1)):
        live, image, cell_y, cell_x, cell = cells_of(cell_tile, cells, out_height, out_width, BLOCK_P, PATCH)
        (
            row00, row01, row10, row11, in00, in01, in10, in11, wy0, wy1, wx0, wx1, _, _, _, _, modulation,
        ) = corners_of_tap(
            offset, mask, line, tap, cell_y * stride_y - padding_y, cell_x * stride_x - padding_x, image, cell, live,
            height, width, dilation_y, dilation_x, offset_image, offset_channel, offset_cell,
            mask_image, mask_channel, mask_cell, AUTHORS, MASKED, KERNEL_WIDTH,
        )  # fmt: skip
        w00 = wy0 * wx0 * modulation
        w01 = wy0 * wx1 * modulation
        w10 = wy1 * wx0 * modulation
        w11 = wy1 * wx1 * modulation
        columns = _values(input, row00 * channels, in00, channel, in_unit, EVEN) * w00[:, None]
        columns += _values(input, row01 * channels, in01, channel, in_unit, EVEN) * w01[:, None]
        columns += _values(input, row10 * channels, in10, channel, in_unit, EVEN) * w10[:, None]
        columns += _values(input, row11 * channels, in11, channel, in_unit, EVEN) * w11[:, None]
        at = grad + (image * out_image + cell * out_cell)[None, :] + (filter * out_channel)[:, None]
        above = tl.load(at, mask=live[None, :] & live_out[:, None], other=0.0)
        columns = columns.to(above.dtype).to(PRODUCT)
        total = tl.dot(above.to(PRODUCT), columns, total, input_precision=PRECISION)

    at = grad_weight + ((filter * TAPS + tap) * group_channels - group * group_channels)[:, None] + channel[None, :]
    tl.atomic_add(at, total, mask=live_out[:, None] & in_unit[None, :], sem="relaxed")
