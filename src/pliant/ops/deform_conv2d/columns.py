"""Deformable convolution by columns on a GPU: Triton gathers them (column_kernels.py), torch multiplies.

Columns are computed for a chunk of the output at a time, which bounds the memory (`tiles.CHUNK_BYTES`). The input's
gradient needs no atomic additions of channels: the samples that read a cell are listed, and the list is summed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from pliant.ops import _gpu
from pliant.ops.deform_conv2d import tiles as settings
from pliant.ops.deform_conv2d.gpu import Call
from pliant.ops.deform_conv2d.tiles import cell_tiles, count

_LISTED = 128  # samples of a program that lists them
_PROGRAMS = 8  # a multiprocessor, below which programs share the taps


class _Chunk(NamedTuple):
    """Images of the output, or rows of one image."""

    first_image: int
    images: int
    first_row: int
    rows: int
    width: int

    @property
    def cells(self) -> int:
        return self.images * self.rows * self.width

    @property
    def arguments(self) -> dict[str, int]:
        return {
            "first_image": self.first_image,
            "images": self.images,
            "first_row": self.first_row,
            "rows": self.rows,
        }

    def map(self, rows: Tensor) -> Tensor:
        """Rows [cells, channels] as a map [images, channels, rows, width], channels last."""
        return rows.view(self.images, self.rows, self.width, -1).permute(0, 3, 1, 2)

    def part(self, table: Tensor) -> Tensor:
        """The chunk's part [cells, channels] of a map [B, H, W, channels]."""
        images = table[self.first_image : self.first_image + self.images]
        return images[:, self.first_row : self.first_row + self.rows].reshape(self.cells, -1)


def forward(call: Call, bias: Tensor | None, out: Tensor) -> Tensor:
    """Fill the output."""
    table = out.permute(0, 2, 3, 1)
    in_place = table.is_contiguous()
    if not in_place:
        table = torch.empty_like(table, memory_format=torch.contiguous_format)
    buffer = None
    for chunk in _chunks(call):
        buffer, columns = _columns_in(call, chunk, buffer)
        _columns(call, chunk, columns)
        _multiply(columns, call.weight, bias, chunk.part(table), call.problem, chunk)
    if not in_place:
        out.copy_(table.permute(0, 3, 1, 2))
    return out


def backward(call: Call, grad: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input [B, H, W, C] and weight [O, kh, kw, C / groups]; the others are filled in."""
    above = grad.permute(0, 2, 3, 1).contiguous()
    chunks = list(_chunks(call))
    in_parts = chunks[0].rows < call.arguments["out_height"]
    grad_input = torch.empty_like(call.input, dtype=torch.float32 if in_parts else call.input.dtype)
    grad_weight: Tensor | None = None
    buffer = None
    for chunk in chunks:
        part = chunk.part(above)
        buffer, columns = _columns_in(call, chunk, buffer)
        _multiply_back(part, call.weight, columns, call.problem, chunk)
        _gather(call, chunk, columns, grad_input)
        _columns(call, chunk, columns, grad_offset, grad_mask)
        of_weight = _weight_gradient(part, columns, call.weight, call.problem, chunk)
        if len(chunks) == 1:
            grad_weight = of_weight
        else:
            grad_weight = of_weight.float() if grad_weight is None else grad_weight.add_(of_weight)
    assert grad_weight is not None
    return grad_input, grad_weight.view(call.weight.shape)


def _chunks(call: Call) -> Iterator[_Chunk]:
    height, width = call.arguments["out_height"], call.arguments["out_width"]
    images = call.problem.cells // (height * width)
    row = width * call.problem.taps * call.arguments["channels"] * call.input.element_size()
    if row * height <= settings.CHUNK_BYTES:
        each = count(images, count(images, settings.CHUNK_BYTES // (row * height)))
        for first in range(0, images, each):
            yield _Chunk(first, min(each, images - first), 0, height, width)
        return
    rows = count(height, count(height, max(1, settings.CHUNK_BYTES // row)))
    for image in range(images):
        for first in range(0, height, rows):
            yield _Chunk(image, 1, first, min(rows, height - first), width)


def _columns_in(call: Call, chunk: _Chunk, buffer: Tensor | None) -> tuple[Tensor, Tensor]:
    """A buffer, made for the first and largest chunk, and columns [cells, taps * C] in it."""
    shape = chunk.cells, call.problem.taps * call.arguments["channels"]
    if buffer is None:
        buffer = call.input.new_empty(shape)
    return buffer, buffer[: chunk.cells]


def _by_convolution(problem: settings.Problem) -> bool:
    """Whether products are convolutions of 1x1: float32 is multiplied as torch's own convolutions are."""
    return problem.dtype == torch.float32 and _gpu.precision(problem.dtype) != _gpu.matrix_precision()


def _multiply(
    columns: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, problem: settings.Problem, chunk: _Chunk
) -> None:
    """out [cells, O] = columns [cells, taps * C] times the weight, by groups."""
    if problem.groups > 1:
        product = torch.einsum("ntgc,gotc->ngo", _by_group(columns, problem), _weight_by_group(weight, problem))
        out.copy_(product.flatten(1) if bias is None else product.flatten(1) + bias.to(product.dtype))
    elif _by_convolution(problem):
        matrix = weight.reshape(problem.outs, -1)
        chunk.map(out).copy_(F.conv2d(chunk.map(columns), matrix[:, :, None, None], bias))
    elif bias is None:
        torch.mm(columns, weight.reshape(problem.outs, -1).T, out=out)
    else:
        torch.addmm(bias.to(out.dtype), columns, weight.reshape(problem.outs, -1).T, out=out)


def _multiply_back(grad: Tensor, weight: Tensor, columns: Tensor, problem: settings.Problem, chunk: _Chunk) -> None:
    """columns [cells, taps * C] = the output's gradient [cells, O] times the weight, by groups."""
    if problem.groups > 1:
        above = grad.unflatten(1, (problem.groups, -1))
        product = torch.einsum("ngo,gotc->ntgc", above, _weight_by_group(weight, problem))
        _by_group(columns, problem).copy_(product)
    elif _by_convolution(problem):
        matrix = weight.reshape(problem.outs, -1).T
        chunk.map(columns).copy_(F.conv2d(chunk.map(grad), matrix[:, :, None, None]))
    else:
        torch.mm(grad, weight.reshape(problem.outs, -1), out=columns)


def _weight_gradient(grad: Tensor, columns: Tensor, weight: Tensor, problem: settings.Problem, chunk: _Chunk) -> Tensor:
    """The weight's gradient, of as many elements as the weight [O, kh, kw, C / groups] and in their order."""
    if problem.groups > 1:
        return torch.einsum("ngo,ntgc->gotc", grad.unflatten(1, (problem.groups, -1)), _by_group(columns, problem))
    if _by_convolution(problem):
        shape = (problem.outs, columns.shape[1], 1, 1)
        return conv2d_weight(chunk.map(columns), shape, chunk.map(grad))
    return torch.mm(grad.T, columns)


def _by_group(columns: Tensor, problem: settings.Problem) -> Tensor:
    """Columns as [cells, taps, groups, C / groups]."""
    return columns.view(len(columns), problem.taps, problem.groups, -1)


def _weight_by_group(weight: Tensor, problem: settings.Problem) -> Tensor:
    """The weight as [groups, O / groups, taps, C / groups]."""
    return weight.reshape(problem.groups, problem.outs, problem.taps, -1)


def _columns(
    call: Call, chunk: _Chunk, columns: Tensor, grad_offset: Tensor | None = None, grad_mask: Tensor | None = None
) -> None:
    backward = grad_offset is not None
    tiles = call.tiles("columns_backward" if backward else "columns")
    programs = cell_tiles(tiles, chunk.images, chunk.rows, chunk.width), _offset_groups(call)
    wanted = _PROGRAMS * _gpu.multiprocessors(columns.device)
    parts = min(call.problem.taps, count(wanted, programs[0] * programs[1]))
    arguments = {
        "columns": columns,
        "grad_offset": grad_offset,
        "grad_mask": grad_mask,
        "parts": parts,
        "BACKWARD": backward,
        "EVEN": call.problem.sampled % (tiles.channels * tiles.unroll) == 0,
        "BLOCK_P": tiles.cells,
        "BLOCK_C": tiles.channels,
        "PATCH": tiles.patch,
        "UNROLL": tiles.unroll,
        "INDEX": _gpu.index_type(call.input, call.offset, call.mask, columns),
    }
    _launch("columns", (*programs, parts), call, chunk.arguments | arguments, **tiles.options)


def _gather(call: Call, chunk: _Chunk, grad_columns: Tensor, grad_input: Tensor) -> None:
    """Fill the chunk's part of the input's gradient: for each cell, the weighted sum of the samples that read it."""
    problem, device, offset_groups = call.problem, grad_columns.device, _offset_groups(call)
    height, width = call.arguments["height"], call.arguments["width"]
    lists = offset_groups * chunk.images * (height + 1) * (width + 1)
    bounds = torch.zeros(lists + 1, dtype=torch.int32, device=device)
    length = chunk.cells * problem.taps * offset_groups
    filled = {
        "samples": torch.empty(length, dtype=torch.int32, device=device),
        "fractions": torch.empty(length, 2, dtype=torch.float32, device=device),
        "modulations": torch.empty(length, dtype=torch.float32, device=device) if call.mask is not None else None,
    }
    programs = count(chunk.cells, _LISTED), problem.taps, offset_groups
    arguments = chunk.arguments | filled | {"BLOCK_P": _LISTED}
    _launch("list_samples", programs, call, arguments | {"bounds": bounds, "FILL": False}, num_warps=4)
    bounds = bounds.cumsum(0, dtype=torch.int32)
    _launch("list_samples", programs, call, arguments | {"bounds": bounds, "FILL": True}, num_warps=4)

    tiles = call.tiles("gather")
    arguments = filled | {
        "grad_columns": grad_columns,
        "bounds": bounds,
        "grad_input": grad_input[chunk.first_image :],
        "images": chunk.images,
        "EVEN": problem.sampled % tiles.channels == 0,
        "INDEX": _gpu.index_type(grad_input, grad_columns),
        "ADD": chunk.first_row > 0,
        "BLOCK_N": tiles.cells,
        "BLOCK_C": tiles.channels,
        "PATCH": tiles.patch,
    }
    blocks = offset_groups * count(problem.sampled, tiles.channels)
    programs = cell_tiles(tiles, chunk.images, height, width), blocks, 1
    _launch("gather", programs, call, arguments, **tiles.options)


def _offset_groups(call: Call) -> int:
    return int(call.arguments["channels"] // call.arguments["offset_channels"])


def _launch(name: str, grid: tuple[int, ...], call: Call, arguments: dict[str, Any], **options: int) -> None:
    """Run a kernel of column_kernels.py with what it takes of the call and of the arguments."""
    kernel = getattr(importlib.import_module("pliant.ops.deform_conv2d.column_kernels"), name)
    tensors = {"input": call.input, "offset": call.offset, "mask": call.mask}
    everything = tensors | call.arguments | arguments | {"sampled": call.problem.sampled}
    _gpu.launch(kernel, grid, {name: everything[name] for name in kernel.arg_names}, **options)
