"""Triton kernels of the RoI poolings; gpu.py launches them.

The map is laid out as the reference's table: a row for every (image, cell, group), its channels by class. A line is
one bin of one RoI and offset class. On each axis a bin reads entries: for whole cells the cells that it touches, all
moved alike, for samples two cells a sample. bins.py and bilinear.py are the specification.

Legend: BLOCK_N lines, BLOCK_C channels of a class.
"""

import triton
import triton.language as tl

# In the order of bins.py.
WHOLE_CELLS = tl.constexpr(0)
AUTHORS_WHOLE_CELLS = tl.constexpr(1)
AUTHORS_SAMPLES = tl.constexpr(2)
_FAR = tl.constexpr(16777216.0)  # 2 ** 24, as in bins.py

_SIZES = [
    "lines", "images", "height", "width", "bins_y", "bins_x", "groups_y", "groups_x", "parts_y", "parts_x", "samples",
]  # fmt: skip


@triton.jit
def _round(value):
    """C's round: halves go away from zero."""
    size = tl.abs(value)
    floor = tl.floor(size)
    return tl.where(value < 0, -1.0, 1.0) * tl.where(size - floor >= 0.5, floor + 1.0, floor)


@triton.jit
def _near(position):
    return tl.minimum(tl.maximum(position, -_FAR), _FAR)


@triton.jit
def _finite(value):
    return tl.abs(value) < float("inf")


@triton.jit
def _bin(start, end, part, parts, size, edge, scale, samples, RULE: tl.constexpr):
    """A bin on one axis: its first position, how many there are, the step between them, and the RoI's side."""
    if RULE == WHOLE_CELLS:
        touches = (start <= edge) & (tl.maximum(start, end) >= 0)
        near = tl.minimum(_near(_round(start * scale)), (size - 1).to(tl.float32))
        side = tl.maximum(tl.maximum(_near(_round(end * scale)), 1.0) - near, 1.0)
        near = tl.where(touches, near, size.to(tl.float32))
        cells = side.to(tl.int64)
        low = near + (part * cells // parts).to(tl.float32)
        high = near + (((part + 1) * cells + parts - 1) // parts).to(tl.float32)
    elif RULE == AUTHORS_WHOLE_CELLS:
        near = _near(_round(start) * scale)
        side = tl.maximum(_near((_round(end) + 1) * scale) - near, 0.1)
        length = tl.div_rn(side, parts.to(tl.float32))
        low = tl.floor(part.to(tl.float32) * length + near)
        high = tl.ceil((part + 1).to(tl.float32) * length + near)
    else:
        near = _near(_round(start) * scale) - 0.5
        side = tl.maximum(_near((_round(end) + 1) * scale) - 0.5 - near, 0.1)
        length = tl.div_rn(side, parts.to(tl.float32))
        low = part.to(tl.float32) * length + near
        high = low
    step = tl.full(side.shape, 1.0, tl.float32)
    count = tl.zeros(side.shape, tl.int32) + samples
    if RULE == AUTHORS_SAMPLES:
        step = tl.div_rn(length, samples.to(tl.float32))
    else:
        low = tl.minimum(tl.maximum(low, 0.0), size.to(tl.float32))
        high = tl.minimum(tl.maximum(high, 0.0), size.to(tl.float32))
        count = tl.maximum(high - low, 0.0).to(tl.int32)
    return low, count, step, side


@triton.jit
def _read(position, size):
    """Whether a sample is no more than half a cell outside the map."""
    return (position >= -0.5) & (position <= size - 0.5)


@triton.jit
def _counted(first, count, step, move, samples, size, RULE: tl.constexpr):
    """By how many positions on this axis the sum is divided."""
    if RULE == AUTHORS_SAMPLES:
        count = tl.zeros(first.shape, tl.int32)
        for sample in range(samples):
            position = first + sample * step + move
            count += (_read(position, size) | (position != position)).to(tl.int32)
    return count


@triton.jit
def _entry(index, first, count, step, move, size, RULE: tl.constexpr):
    """One entry of a bin on one axis: the cell, whether it is read, its weight, and the weight's slope."""
    if RULE == AUTHORS_SAMPLES:
        position = first + index // 2 * step + move
        # Comparisons let NaN through.
        last = (size - 1).to(tl.float32)
        inner = tl.where(position < 0, 0.0, tl.where(position > last, last, position))
        floor = tl.floor(inner)
        fraction = inner - floor
        cell = tl.where(floor >= 0, floor, 0.0).to(tl.int32)
        inside = _read(position, size)
        between = fraction > 0
        steep = tl.where(between & (position == inner), 1.0, 0.0)
        second = index % 2
        cell = tl.where(between, cell + second, cell)
        weight = tl.where(second == 1, fraction, 1 - fraction)
        slope = tl.where(second == 1, steep, -steep)
        nan = position != position
    else:
        position = first + move
        floor = tl.floor(position)
        fraction = position - floor
        # So far outside at most that no cell of the bin comes back in; NaN as well.
        outside = -2.0 - size
        cell = tl.where(floor >= outside, tl.where(floor <= size, floor, size), outside).to(tl.int32) + index
        inside = (cell >= 0) & (cell < size) & (index <= count) & (count > 0)
        begins = tl.where(index < count, 1.0, 0.0)
        ends = tl.where((index > 0) & (index <= count), 1.0, 0.0)
        weight = tl.where(index < count, 1 - fraction, 0.0) + tl.where(ends > 0, fraction, 0.0)
        slope = ends - begins
        nan = (position != position) & (index <= count)
    return cell, inside, tl.where(inside | nan, weight, 0.0), tl.where(inside, slope, 0.0)


# fmt: off
@triton.jit
def _lines(
    rois, offset, first, lines, images, height, width, classes, bins_y, bins_x, parts_y, parts_x, edge_y, edge_x,
    scale, gamma, samples, OFFSET: tl.constexpr, RULE: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr,
):
    # fmt: on
    """Where lines read, axis by axis, and what belongs to each. A RoI that is no number or of no image reads nothing.

    It can come here only where the host must not look at values, while a CUDA graph is captured.
    """
    line = first + tl.arange(0, BLOCK_N)
    live = line < lines
    bin_x = line % bins_x
    bin_y = line // bins_x % bins_y
    kind = line // bins_x // bins_y % classes
    roi = (line // bins_x // bins_y // classes).to(INDEX)
    at = rois + roi * 5
    image = tl.load(at, mask=live, other=0.0)
    x0 = tl.load(at + 1, mask=live, other=0.0)
    y0 = tl.load(at + 2, mask=live, other=0.0)
    x1 = tl.load(at + 3, mask=live, other=0.0)
    y1 = tl.load(at + 4, mask=live, other=0.0)
    good = (image >= 0) & (image < images) & _finite(x0) & _finite(y0) & _finite(x1) & _finite(y1)
    image = tl.where(good, image, 0.0).to(tl.int32)
    first_y, count_y, step_y, side_y = _bin(
        tl.where(good, y0, 0.0), tl.where(good, y1, 0.0), bin_y, bins_y, height, edge_y, scale, samples, RULE
    )
    first_x, count_x, step_x, side_x = _bin(
        tl.where(good, x0, 0.0), tl.where(good, x1, 0.0), bin_x, bins_x, width, edge_x, scale, samples, RULE
    )
    move_y = tl.zeros((BLOCK_N,), tl.float32)
    move_x = tl.zeros((BLOCK_N,), tl.float32)
    part = tl.zeros((BLOCK_N,), INDEX)
    if OFFSET:
        area = parts_y * parts_x
        part = (roi * classes + kind) * 2 * area + bin_y * parts_y // bins_y * parts_x + bin_x * parts_x // bins_x
        move_x = tl.load(offset + part, mask=live, other=0.0).to(tl.float32) * (side_x * gamma)
        move_y = tl.load(offset + part + area, mask=live, other=0.0).to(tl.float32) * (side_y * gamma)
    count = _counted(first_y, count_y, step_y, move_y, samples, height, RULE) * _counted(
        first_x, count_x, step_x, move_x, samples, width, RULE
    )
    one = tl.full((BLOCK_N,), 1.0, tl.float32)
    share = tl.where(count > 0, tl.div_rn(one, tl.maximum(count, 1).to(tl.float32)), 0.0)
    count_y = tl.where(live, count_y, 0)
    count_x = tl.where(live, count_x, 0)
    return (
        live, good, roi, kind, bin_y, bin_x, image, share, part,
        first_y, count_y, step_y, move_y, side_y * gamma, first_x, count_x, step_x, move_x, side_x * gamma,
    )  # fmt: skip


@triton.jit
def _entries(count, MOVED: tl.constexpr, RULE: tl.constexpr):
    """How many entries the longest of several bins has."""
    longest = tl.max(count, axis=0)
    if RULE == AUTHORS_SAMPLES:
        longest = longest * 2
    elif MOVED:
        longest = longest + 1
    return longest


# fmt: off
@triton.jit(do_not_specialize=_SIZES)
def forward(
    table, rois, offset, out, lines, images, height, width, bins_y, bins_x, groups_y, groups_x, parts_y, parts_x,
    samples, classes, class_channels, edge_y, edge_x, scale, gamma,
    OFFSET: tl.constexpr, RULE: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    # fmt: on
    """A program is a tile of lines and of their class's channels."""
    (
        live, good, roi, kind, bin_y, bin_x, image, share, _,
        first_y, count_y, step_y, move_y, _, first_x, count_x, step_x, move_x, _,
    ) = _lines(
        rois, offset, tl.program_id(0).to(INDEX) * BLOCK_N, lines, images, height, width, classes, bins_y, bins_x,
        parts_y, parts_x, edge_y, edge_x, scale, gamma, samples, OFFSET, RULE, INDEX, BLOCK_N,
    )  # fmt: skip
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_class = channel < class_channels
    groups = groups_y * groups_x
    group = bin_y * groups_y // bins_y * groups_x + bin_x * groups_x // bins_x
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for index_y in range(_entries(count_y, OFFSET, RULE)):
        y, in_y, weight_y, _ = _entry(index_y, first_y, count_y, step_y, move_y, height, RULE)
        for index_x in range(_entries(count_x, OFFSET, RULE)):
            x, in_x, weight_x, _ = _entry(index_x, first_x, count_x, step_x, move_x, width, RULE)
            row = ((((image.to(INDEX) * height + y) * width + x) * groups + group) * classes + kind) * class_channels
            read = (live & in_y & in_x)[:, None] & in_class[None, :]
            value = tl.load(table + row[:, None] + channel[None, :], mask=read, other=0.0).to(tl.float32)
            total += value * (weight_y * weight_x)[:, None]
    total = tl.where((share > 0)[:, None], total * share[:, None], 0.0)  # NaN shows where cells are read
    total = tl.where(good[:, None], total, float("nan"))
    area = bins_y * bins_x
    line = (roi * classes + kind) * class_channels * area + bin_y * bins_x + bin_x
    wanted = live[:, None] & in_class[None, :]
    tl.store(out + line[:, None] + (channel * area)[None, :], total.to(out.dtype.element_ty), mask=wanted)


# fmt: off
@triton.jit(do_not_specialize=_SIZES)
def backward(
    grad, table, rois, offset, grad_table, grad_offset, lines, images, height, width, bins_y, bins_x,
    groups_y, groups_x, parts_y, parts_x, samples, classes, class_channels, edge_y, edge_x, scale, gamma,
    OFFSET: tl.constexpr, RULE: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    # fmt: on
    """As the forward: entries get their share of the gradient, and are multiplied with it for the offset."""
    (
        live, good, roi, kind, bin_y, bin_x, image, share, part,
        first_y, count_y, step_y, move_y, moves_y, first_x, count_x, step_x, move_x, moves_x,
    ) = _lines(
        rois, offset, tl.program_id(0).to(INDEX) * BLOCK_N, lines, images, height, width, classes, bins_y, bins_x,
        parts_y, parts_x, edge_y, edge_x, scale, gamma, samples, OFFSET, RULE, INDEX, BLOCK_N,
    )  # fmt: skip
    live = live & good
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_class = channel < class_channels
    groups = groups_y * groups_x
    group = bin_y * groups_y // bins_y * groups_x + bin_x * groups_x // bins_x
    area = bins_y * bins_x
    line = (roi * classes + kind) * class_channels * area + bin_y * bins_x + bin_x
    above = tl.load(
        grad + line[:, None] + (channel * area)[None, :], mask=live[:, None] & in_class[None, :], other=0.0
    ).to(tl.float32) * share[:, None]
    slopes_y = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    slopes_x = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for index_y in range(_entries(count_y, OFFSET, RULE)):
        y, in_y, weight_y, slope_y = _entry(index_y, first_y, count_y, step_y, move_y, height, RULE)
        for index_x in range(_entries(count_x, OFFSET, RULE)):
            x, in_x, weight_x, slope_x = _entry(index_x, first_x, count_x, step_x, move_x, width, RULE)
            row = ((((image.to(INDEX) * height + y) * width + x) * groups + group) * classes + kind) * class_channels
            read = (live & in_y & in_x)[:, None] & in_class[None, :]
            if OFFSET:
                value = tl.load(table + row[:, None] + channel[None, :], mask=read, other=0.0).to(tl.float32)
                slopes_y += value * (slope_y * weight_x)[:, None]
                slopes_x += value * (weight_y * slope_x)[:, None]
            weight = (weight_y * weight_x)[:, None]
            tl.atomic_add(grad_table + row[:, None] + channel[None, :], above * weight, mask=read, sem="relaxed")
    if OFFSET:
        of_x = tl.where(share > 0, tl.sum(above * slopes_x, 1) * moves_x, 0.0)
        of_y = tl.where(share > 0, tl.sum(above * slopes_y, 1) * moves_y, 0.0)
        tl.atomic_add(grad_offset + part, of_x, mask=live, sem="relaxed")
        tl.atomic_add(grad_offset + part + parts_y * parts_x, of_y, mask=live, sem="relaxed")
