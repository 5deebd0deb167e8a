"""Deformable convolution by columns on a GPU: Triton gathers them (column_kernels.py), cuBLAS multiplies.

Columns are computed for a few taps at a time, as many as stay in the GPU's cache. The input's gradient needs no atomic
additions of channels: the samples that read a cell are listed, and the list is summed.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu
from pliant.ops.deform_conv2d import tiles as settings
from pliant.ops.deform_conv2d.gpu import Call
from pliant.ops.deform_conv2d.tiles import count

_LISTED = 256  # samples of a program that lists them


def forward(call: Call, bias: Tensor | None, out: Tensor) -> Tensor:
    """Fill the output: all taps at once, because the sum over taps is the product's."""
    problem, taps = call.problem, call.problem.taps
    columns = _empty_columns(call, taps)
    _columns(call, columns, 0, taps)
    matrix = call.weight.reshape(problem.groups, problem.outs, -1)
    product = torch.bmm(columns.flatten(2), matrix.mT)  # [groups, cells, O / groups]
    product = product.transpose(0, 1).reshape(problem.cells, -1)
    if bias is not None:
        product = product + bias.to(product.dtype)
    batch, _, height, width = out.shape
    return out.copy_(product.reshape(batch, height, width, -1).permute(0, 3, 1, 2))


def backward(call: Call, grad: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input [B, H, W, C] and weight [O, kh, kw, C / groups]; the others are filled in."""
    problem, taps = call.problem, call.problem.taps
    above = grad.permute(0, 2, 3, 1).reshape(problem.cells, problem.groups, problem.outs).transpose(0, 1)
    weight = call.weight.reshape(problem.groups, problem.outs, taps, -1)
    chunks = _chunks(call)
    grad_input = torch.empty_like(call.input, dtype=call.input.dtype if len(chunks) == 1 else torch.float32)
    grad_weight = torch.empty_like(weight)
    buffer = _empty_columns(call, max(chunk for _, chunk in chunks))
    for first, chunk in chunks:
        columns = buffer.flatten()[: buffer[:, :, :chunk].numel()].view(problem.groups, problem.cells, -1)
        torch.bmm(above, weight[:, :, first : first + chunk].flatten(2), out=columns)
        _gather(call, columns, grad_input, first, chunk, grad_offset)
        _columns(call, columns, first, chunk, grad_offset, grad_mask)
        grad_weight[:, :, first : first + chunk] = torch.bmm(above.mT, columns).unflatten(2, (chunk, -1))
    return grad_input, grad_weight.view(call.weight.shape)


def _empty_columns(call: Call, taps: int) -> Tensor:
    problem = call.problem
    return call.input.new_empty(problem.groups, problem.cells, taps, call.arguments["group_channels"])


def _chunks(call: Call) -> list[tuple[int, int]]:
    """First tap and number of taps of each chunk."""
    taps = call.problem.taps
    bytes = call.problem.cells * call.arguments["channels"] * call.input.element_size()  # of a tap
    chunks = count(taps, min(taps, max(1, settings.CHUNK_BYTES // bytes)))
    each = count(taps, chunks)
    return [(first, min(each, taps - first)) for first in range(0, taps, each)]


def _columns(
    call: Call,
    columns: Tensor,
    first: int,
    chunk: int,
    grad_offset: Tensor | None = None,
    grad_mask: Tensor | None = None,
) -> None:
    backward = grad_offset is not None
    tiles = call.tiles("columns_backward" if backward else "columns")
    grid = call.cell_tiles(tiles), call.arguments["channels"] // call.arguments["offset_channels"]
    tensors = {"columns": columns, "grad_offset": grad_offset, "grad_mask": grad_mask}
    blocks = {"BLOCK_P": tiles.cells, "BLOCK_C": tiles.channels, "PATCH": tiles.patch, "BACKWARD": backward}
    even = call.problem.unit % tiles.channels == 0
    arguments = tensors | blocks | {"first_tap": first, "chunk": chunk, "EVEN": even}
    index = _gpu.index_type(call.input, call.offset, call.mask, columns)
    _launch("columns", grid, call, arguments | {"INDEX": index}, **tiles.options)


def _gather(call: Call, grad_columns: Tensor, grad_input: Tensor, first: int, chunk: int, grad_offset: Tensor) -> None:
    """Sum, for each cell of the input, the gradients of the samples that read it."""
    problem = call.problem
    offset_groups = call.arguments["channels"] // call.arguments["offset_channels"]
    rows = call.input.shape[0] * call.arguments["height"] * call.arguments["width"]
    bounds = torch.zeros(offset_groups * rows + 1, dtype=torch.int32, device=grad_columns.device)
    entries = 4 * problem.cells * chunk * offset_groups
    samples = torch.empty(entries, dtype=torch.int32, device=grad_columns.device)
    weights = torch.empty(entries, dtype=torch.float32, device=grad_columns.device)
    grid = count(problem.cells, _LISTED), chunk, offset_groups
    lists = {"samples": samples, "weights": weights, "first_tap": first, "chunk": chunk, "BLOCK_P": _LISTED}
    _launch("readers", grid, call, lists | {"bounds": bounds, "FILL": False}, num_warps=4)
    bounds = bounds.cumsum(0, dtype=torch.int32)
    _launch("readers", grid, call, lists | {"bounds": bounds, "FILL": True}, num_warps=4)

    tiles = call.tiles("gather")
    units = call.arguments["channels"] // problem.unit
    arguments = {
        "grad_columns": grad_columns, "bounds": bounds, "samples": samples, "weights": weights,
        "grad_input": grad_input, "rows": rows, "chunk": chunk, "EVEN": problem.unit % tiles.channels == 0,
        "INDEX": _gpu.index_type(grad_input, grad_columns), "ADD": first > 0, "BLOCK_N": tiles.cells,
        "BLOCK_C": tiles.channels,
    }  # fmt: skip
    programs = count(rows, tiles.cells), units * count(problem.unit, tiles.channels)
    _launch("gather", programs, call, arguments, **tiles.options)


def _launch(name: str, grid: tuple[int, ...], call: Call, arguments: dict[str, Any], **options: int) -> None:
    """Run a kernel of column_kernels.py with what it takes of the call and of the arguments."""
    kernel = getattr(importlib.import_module("pliant.ops.deform_conv2d.column_kernels"), name)
    tensors = {"input": call.input, "offset": call.offset, "mask": call.mask}
    everything = tensors | call.arguments | arguments
    _gpu.launch(kernel, grid, {name: everything[name] for name in kernel.arg_names}, **options)
