"""Deformable convolution on the Triton kernels (kernels.py)."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops.deform_conv2d.reference import Geometry


class Tiles(NamedTuple):
    """What one program computes at a time, and the threads that do."""

    cells: int
    channels: int
    outs: int
    warps: int
    stages: int


class _Problem(NamedTuple):
    """Tensors as the kernels take them, and what all three are told."""

    input: Tensor  # [B, H, W, C]
    offset: Tensor  # [B, 2 * G * K, Ho * Wo], any strides
    mask: Tensor | None
    weight: Tensor  # [O, kh, kw, C / groups]
    arguments: dict[str, Any]


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: Geometry
) -> Tensor:
    out = torch.empty(
        (input.shape[0], weight.shape[0], *offset.shape[2:]),
        dtype=input.dtype,
        device=input.device,
        memory_format=_gpu.layout(input),
    )
    if out.numel():
        problem = _problem(input, offset, weight, mask, geometry, out)
        cells, outs, unit = (problem.arguments[name] for name in ("cells", "group_outs", "unit"))
        groups = input.shape[1] // weight.shape[1]
        far = _gpu.far_apart(problem.input, problem.offset, problem.mask, problem.weight, out)
        tiles = forward_tiles(input, cells, outs, groups, unit, far=far)
        grid = _tiles(cells, tiles.cells), _tiles(outs, tiles.outs), groups
        bias = None if bias is None else bias.contiguous()
        _launch("forward", grid, tiles, problem, {"bias": bias, "out": out, "BIASED": bias is not None})
    return out


def deform_conv2d_backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    batch, channels, height, width = input.shape
    outs, group_channels, *kernel = weight.shape
    grad_input = input.new_zeros((batch, height, width, channels), dtype=torch.float32)
    grad_weight = weight.new_zeros((outs, *kernel, group_channels), dtype=torch.float32)
    grad_offset = offset.new_zeros(offset.shape)
    grad_mask = None if mask is None else mask.new_zeros(mask.shape)
    if grad.numel():
        grad = grad.flatten(2)
        problem = _problem(input, offset, weight, mask, geometry, grad)
        _backward_samples(problem, grad, grad_input, grad_offset, grad_mask)
        _backward_weight(problem, grad, grad_weight)
    return (
        grad_input.permute(0, 3, 1, 2).to(input.dtype).contiguous(memory_format=_gpu.layout(input)),
        grad_offset,
        grad_weight.permute(0, 3, 1, 2).contiguous().to(weight.dtype),
        grad_mask,
    )


def forward_tiles(input: Tensor, cells: int, outs: int, groups: int, unit: int, *, far: bool = False) -> Tiles:
    """The forward's tiles: as wide in output channels as keeps all multiprocessors busy.

    Every tile of output channels gathers its columns anew. With indices of 64 bits (`far`) the widest would spill.
    """
    if _native.interpreting():
        return Tiles(32, _block(unit, 16), _block(outs, 32), 1, 1)
    if input.dtype == torch.float32 and _gpu.precision(input.dtype) == "ieee":
        return Tiles(64, _block(unit, 16), _block(outs, 64), 4, 2)
    widest = 128 if input.dtype == torch.float32 or far else 256
    while widest > 64 and _tiles(cells, 64) * _tiles(outs, widest) * groups < _gpu.multiprocessors(input.device):
        widest //= 2
    return Tiles(64, _block(unit, 32), _block(outs, widest), 8, 2)


def samples_tiles(outs: int, unit: int) -> Tiles:
    """The tiles of the gradients of input, offset and mask."""
    if _native.interpreting():
        return Tiles(32, _block(unit, 16), _block(outs, 32), 1, 1)
    return Tiles(64, _block(unit, 32), _block(outs, 64), 8, 2)


def weight_tiles(input: Tensor, outs: int, unit: int) -> Tiles:
    """The tiles of the weight's gradient."""
    if _native.interpreting():
        return Tiles(32, _block(unit, 16), _block(outs, 32), 1, 1)
    if input.dtype == torch.float32:
        return Tiles(32, _block(unit, 32), _block(outs, 64), 4, 2)
    return Tiles(64, _block(unit, 64), _block(outs, 128), 8, 2)


def _backward_samples(
    problem: _Problem, grad: Tensor, grad_input: Tensor, grad_offset: Tensor, grad_mask: Tensor | None
) -> None:
    cells, outs, taps, unit = (problem.arguments[name] for name in ("cells", "group_outs", "taps", "unit"))
    tiles = samples_tiles(outs, unit)
    grid = _tiles(cells, tiles.cells), taps, grad_offset.shape[1] // (2 * taps)
    arguments = {"grad": grad, "grad_input": grad_input, "grad_offset": grad_offset, "grad_mask": grad_mask}
    _launch("backward_samples", grid, tiles, problem, arguments)


def _backward_weight(problem: _Problem, grad: Tensor, grad_weight: Tensor) -> None:
    names = "cells", "group_outs", "taps", "unit", "channels"
    cells, outs, taps, unit, channels = (problem.arguments[name] for name in names)
    tiles = weight_tiles(problem.input, outs, unit)
    programs = _tiles(outs, tiles.outs) * taps * (channels // unit) * _tiles(unit, tiles.channels)
    shares = _tiles(_SHARES * _gpu.multiprocessors(grad.device), programs)
    grid = programs, min(shares, _tiles(cells, tiles.cells))
    arguments = {"grad": grad, "grad_weight": grad_weight}
    _launch("backward_weight", grid, tiles, problem, arguments, without=("weight",))


def _problem(
    input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry, out: Tensor
) -> _Problem:
    """Lay tensors out, and gather what the kernels need to know; `out` has the strides of output or gradient."""
    batch, channels, height, width = input.shape
    taps = weight.shape[2] * weight.shape[3]
    out_area, out_width = offset.shape[2] * offset.shape[3], offset.shape[3]
    offset_channels = channels // (offset.shape[1] // (2 * taps))
    rows = input.permute(0, 2, 3, 1).contiguous()
    filters = weight.permute(0, 2, 3, 1).contiguous()
    offset, out = offset.flatten(2), out.flatten(2)
    mask = None if mask is None else mask.flatten(2)
    arguments: dict[str, Any] = {
        "cells": batch * out_area,
        "out_area": out_area,
        "out_width": out_width,
        "height": height,
        "width": width,
        "taps": taps,
        "kernel_width": weight.shape[3],
    }
    for name, pair in zip(("stride", "padding", "dilation"), geometry[:3], strict=True):
        arguments |= {f"{name}_y": pair[0], f"{name}_x": pair[1]}
    arguments |= {
        "channels": channels,
        "group_channels": weight.shape[1],
        "group_outs": weight.shape[0] * weight.shape[1] // channels,
        "offset_channels": offset_channels,
        "unit": math.gcd(weight.shape[1], offset_channels),
    }
    for name, tensor in (("offset", offset), ("mask", offset if mask is None else mask), ("out", out)):
        steps = tensor.stride()
        arguments |= {f"{name}_image": steps[0], f"{name}_channel": steps[1], f"{name}_cell": steps[2]}
    arguments |= {
        "AUTHORS": geometry.border == "authors",
        "MASKED": mask is not None,
        "INDEX": _gpu.index_type(rows, offset, mask, filters, out),
        "PRODUCT": _gpu.product_type(input.dtype),
        "PRECISION": _gpu.precision(input.dtype),
    }
    return _Problem(rows, offset, mask, filters, arguments)


def _launch(
    name: str,
    grid: tuple[int, ...],
    tiles: Tiles,
    problem: _Problem,
    arguments: dict[str, Any],
    without: tuple[str, ...] = (),
) -> None:
    tensors = {"input": problem.input, "offset": problem.offset, "mask": problem.mask, "weight": problem.weight}
    blocks = {"BLOCK_P": tiles.cells, "BLOCK_C": tiles.channels, "BLOCK_O": tiles.outs}
    everything = tensors | problem.arguments | arguments | blocks
    everything["EVEN"] = everything["unit"] % tiles.channels == 0
    kernels = importlib.import_module("pliant.ops.deform_conv2d.kernels")
    wanted = {key: value for key, value in everything.items() if key not in without}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    _gpu.launch(getattr(kernels, name), grid, wanted, **options)


def _block(length: int, most: int) -> int:
    """A power of two that covers a length, from what a matrix product takes up to `most`."""
    return min(most, max(_LEAST, 1 << (length - 1).bit_length()))


def _tiles(length: int, block: int) -> int:
    return -(-length // block)


_LEAST = 16
_SHARES = 4  # programs a multiprocessor, so that the last ones keep few others waiting
