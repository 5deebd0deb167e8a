"""Deformable convolution by columns on a GPU: Triton gathers them (column_kernels.py), torch multiplies.

Columns are computed for a chunk of the output at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from pliant.ops import _gpu
from pliant.ops.deform_conv2d import tiles as settings
from pliant.ops.deform_conv2d.chunks import Chunk, chunks
from pliant.ops.deform_conv2d.gpu import Call, Launch, run
from pliant.ops.deform_conv2d.input_gradient import gather
from pliant.ops.deform_conv2d.tiles import cell_tiles, count

_PROGRAMS = 8  # a multiprocessor, below which programs share the taps


def forward(call: Call, bias: Tensor | None, out: Tensor) -> Tensor:
    """Fill the output."""
    table = out.permute(0, 2, 3, 1)
    in_place = table.is_contiguous()
    if not in_place:
        table = torch.empty_like(table, memory_format=torch.contiguous_format)
    buffer = None
    for chunk in chunks(call, _bytes_of_cell(call)):
        buffer, columns = _columns_in(call, chunk, buffer)
        _columns(call, chunk, columns)
        _multiply(columns, call.weight, bias, chunk.part(table), call.problem, chunk)
    if not in_place:
        out.copy_(table.permute(0, 3, 1, 2))
    return out


def backward(call: Call, grad: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input [B, H, W, C] and weight [O, kh, kw, C / groups]; the others are filled in."""
    above = grad.permute(0, 2, 3, 1).contiguous()
    parts = chunks(call, _bytes_of_cell(call))
    in_parts = parts[0].rows < call.arguments["out_height"]
    grad_input = torch.empty_like(call.input, dtype=torch.float32 if in_parts else call.input.dtype)
    grad_weight: Tensor | None = None
    buffer = None
    for chunk in parts:
        part = chunk.part(above)
        buffer, columns = _columns_in(call, chunk, buffer)
        _multiply_back(part, call.weight, columns, call.problem, chunk)
        gather(call, chunk, columns, grad_input)
        _columns(call, chunk, columns, grad_offset, grad_mask)
        of_weight = _weight_gradient(part, columns, call.weight, call.problem, chunk)
        if len(parts) == 1:
            grad_weight = of_weight
        else:
            grad_weight = of_weight.float() if grad_weight is None else grad_weight.add_(of_weight)
    assert grad_weight is not None
    return grad_input, grad_weight.view(call.weight.shape)


def _bytes_of_cell(call: Call) -> int:
    return int(call.problem.taps * call.arguments["channels"] * call.input.element_size())


def _columns_in(call: Call, chunk: Chunk, buffer: Tensor | None) -> tuple[Tensor, Tensor]:
    """A buffer, made for the first and largest chunk, and columns [cells, taps * C] in it."""
    shape = chunk.cells, call.problem.taps * call.arguments["channels"]
    if buffer is None:
        buffer = call.input.new_empty(shape)
    return buffer, buffer[: chunk.cells]


def _by_convolution(problem: settings.Problem) -> bool:
    """Whether products are convolutions of 1x1: float32 is multiplied as torch's own convolutions are."""
    return problem.dtype == torch.float32 and _gpu.precision(problem.dtype) != _gpu.matrix_precision()


def _multiply(
    columns: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, problem: settings.Problem, chunk: Chunk
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


def _multiply_back(grad: Tensor, weight: Tensor, columns: Tensor, problem: settings.Problem, chunk: Chunk) -> None:
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


def _weight_gradient(grad: Tensor, columns: Tensor, weight: Tensor, problem: settings.Problem, chunk: Chunk) -> Tensor:
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
    call: Call, chunk: Chunk, columns: Tensor, grad_offset: Tensor | None = None, grad_mask: Tensor | None = None
) -> None:
    backward = grad_offset is not None

    def described() -> Launch:
        tiles = call.tiles("columns_backward" if backward else "columns")
        programs = cell_tiles(tiles, chunk.images, chunk.rows, chunk.width), call.offset_groups // tiles.pack
        wanted = _PROGRAMS * _gpu.multiprocessors(columns.device)
        parts = min(call.problem.taps, count(wanted, programs[0] * programs[1]))
        index = _gpu.index_type(call.input, call.offset, call.mask, columns)
        arguments = {"parts": parts, "BACKWARD": backward, "INDEX": index}
        return Launch("column_kernels.columns", (*programs, parts), tiles, chunk.arguments | arguments)

    tensors = {"columns": columns, "grad_offset": grad_offset, "grad_mask": grad_mask}
    run(call, ("columns", chunk, backward), described, tensors)
