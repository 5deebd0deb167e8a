"""Bilinear sampling for the operators: two cells per axis, and weighted sums of the rows of a table.

The kernel of equation 4 is separable, G(q, p) = g(q_y, p_y) g(q_x, p_x) with g(a, b) = max(0, 1 - |a - b|). A sample is
therefore described one axis at a time: the two neighbouring cells, their weights, and the derivatives of the weights
with respect to the position. Sampling is a weighted sum of the rows of a table, the feature map in channels-last order
with one row per cell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.ops._transforms import function_of


class Axis(NamedTuple):
    """The two cells that a position reads on one axis. Every field is `[..., 2]`."""

    cell: Tensor  # int64, in 0 .. size - 1 where `inside`
    inside: Tensor  # bool: the cell exists and is read
    weight: Tensor  # 0 outside; NaN where the position is NaN, so that it shows in the result
    slope: Tensor  # d weight / d position, from the right at a cell's centre


def zero_padded(position: Tensor, size: int) -> Axis:
    """Equation 3: cells outside the map are zero, and the slope reaches one cell beyond the border."""
    low, fraction = _split(position, size)
    index = torch.stack((low, low + 1), dim=-1)
    inside = (index >= 0) & (index < size)
    return _axis(index, inside, fraction, torch.ones_like(fraction), position)


def cut_and_replicated(position: Tensor, size: int) -> Axis:
    """The authors' first convolution: zero outside [0, size), with the last cell repeated up to that edge."""
    low, fraction = _split(position, size)
    last = low >= size - 1
    fraction = torch.where(last, torch.zeros_like(fraction), fraction)
    steep = torch.where(last, torch.zeros_like(fraction), torch.ones_like(fraction))
    index = torch.stack((low, torch.where(last, low, low + 1)), dim=-1)
    inside = ((low >= 0) & (low < size)).unsqueeze(-1).expand_as(index)
    return _axis(index, inside, fraction, steep, position)


def clamped(position: Tensor, size: int) -> Axis:
    """The authors' sampled pooling: up to half a cell outside, the border is read; beyond that nothing."""
    read = (position >= -0.5) & (2 * position <= 2 * size - 1)  # without fractions, for exporters
    inner = position.clamp(0, size - 1)
    low, fraction = _split(inner, size)
    steep = ((fraction > 0) & (position == inner)).to(position.dtype)
    index = torch.stack((low, torch.where(fraction > 0, low + 1, low)), dim=-1)
    inside = read.unsqueeze(-1).expand_as(index)
    return _axis(index, inside, fraction, steep, position)


def _split(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell at or before a position, limited to -2 .. size, and the fraction of a cell after it."""
    floor = position.floor()
    low = floor.masked_fill(floor.isnan(), -2).clamp(-2, size).long()
    return low, position - floor


def _axis(index: Tensor, inside: Tensor, fraction: Tensor, steep: Tensor, position: Tensor) -> Axis:
    counted = inside | position.isnan().unsqueeze(-1)
    zero = fraction.new_zeros(())
    weight = torch.where(counted, torch.stack((1 - fraction, fraction), dim=-1), zero)
    slope = torch.where(inside, torch.stack((-steep, steep), dim=-1), zero)
    return Axis(index, inside, weight, slope)


def rows_of(input: Tensor, row_channels: int) -> Tensor:
    """A map `[B, C, H, W]` as a table of rows `[B * H * W * C / row_channels + 1, row_channels]`.

    The last row is zero and represents every cell outside the map.
    """
    rows = input.permute(0, 2, 3, 1).reshape(-1, row_channels)
    return torch.cat((rows, rows.new_zeros(1, row_channels)))


def map_of(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `rows_of`: the table without its zero row, as a map of `shape` `[B, C, H, W]`."""
    batch, channels, height, width = shape
    return rows[:-1].reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()


# The three functions below are the gradients of one form, sum_ns weight[n, s] grad[n] . table[index[n, s]], one for
# each of its three factors. The derivatives of each are the other two, so derivatives of every order exist.


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """sum_s weight[n, s] * table[index[n, s]]: `[R, C]`, `[N, S]`, `[N, S]` to `[N, C]`."""
    return _Sum.apply(table, index, weight)  # type: ignore[no-any-return]


def weighted_rows_grad_table(grad: Tensor, rows: int, index: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `weighted_rows` with respect to its table: `[N, C]` to `[rows, C]`.

    This is the transposed sum: entries are sorted by the row that they read, and each row sums the gradients of its
    entries. The order of summation is fixed, so the result is reproducible.
    """
    return _TransposedSum.apply(grad, rows, index, weight)  # type: ignore[no-any-return]


def weighted_rows_grad_weight(grad: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """The gradient of `weighted_rows` with respect to its weights: grad[n] . table[index[n, s]], `[N, S]`."""
    return _Products.apply(grad, table, index)  # type: ignore[no-any-return]


def gathered_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """`weighted_rows` by operations that every device and format supports. It materialises all rows."""
    return torch.einsum("ns,nsc->nc", weight, table[index])


def _sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    if table.device.type in _HAVE_EMBEDDING_BAG:
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
    return gathered_rows(table, index, weight)


def _transposed_sum(grad: Tensor, rows: int, index: Tensor, weight: Tensor) -> Tensor:
    flat = index.flatten()
    if grad.device.type not in _HAVE_EMBEDDING_BAG:
        spread = (grad.unsqueeze(1) * weight.unsqueeze(-1)).flatten(0, 1)  # [N * S, C]
        return grad.new_zeros(rows, grad.shape[1]).index_add(0, flat, spread)
    ordered, order = flat.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(rows, device=grad.device))
    reader = order.div(index.shape[1], rounding_mode="floor")
    return F.embedding_bag(reader, grad, starts, mode="sum", per_sample_weights=weight.flatten()[order])


def _products(grad: Tensor, table: Tensor, index: Tensor) -> Tensor:
    if grad.device.type not in _HAVE_EMBEDDING_BAG:
        return torch.einsum("nc,nsc->ns", grad, table[index])
    bags, samples = index.shape
    bag = torch.arange(bags, device=index.device)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, index.flatten(), bag * samples, bag.repeat_interleave(samples), _BAG_MODE_SUM
    )
    return dots.reshape(bags, samples)


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, index, weight = ctx.saved_tensors
    return (
        weighted_rows_grad_table(grad, table.shape[0], index, weight) if ctx.needs_input_grad[0] else None,
        None,
        weighted_rows_grad_weight(grad, table, index) if ctx.needs_input_grad[2] else None,
    )


def _save_transposed_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, _, index, weight = inputs
    ctx.save_for_backward(grad, index, weight)


def _differentiate_transposed_sum(ctx: Any, table: Tensor) -> tuple[Tensor | None, ...]:
    grad, index, weight = ctx.saved_tensors
    return (
        weighted_rows(table, index, weight) if ctx.needs_input_grad[0] else None,
        None,
        None,
        weighted_rows_grad_weight(grad, table, index) if ctx.needs_input_grad[3] else None,
    )


def _differentiate_products(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
    grad, table, index = ctx.saved_tensors
    return (
        weighted_rows(table, index, weight) if ctx.needs_input_grad[0] else None,
        weighted_rows_grad_table(grad, table.shape[0], index, weight) if ctx.needs_input_grad[1] else None,
        None,
    )


_Sum = function_of(_sum, _save_sum, _differentiate_sum)
_TransposedSum = function_of(_transposed_sum, _save_transposed_sum, _differentiate_transposed_sum)
_Products = function_of(_products, _save_sum, _differentiate_products)

_HAVE_EMBEDDING_BAG = ("cpu", "cuda")
_BAG_MODE_SUM = 0
