"""Deformable convolution on the Triton kernels (kernels.py), or by columns (columns.py)."""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant.ops import _gpu
from pliant.ops.deform_conv2d import tiles as settings
from pliant.ops.deform_conv2d.reference import Geometry
from pliant.ops.deform_conv2d.tiles import Tiles, count

_SHARES = 4  # programs a multiprocessor, so that the last ones keep few others waiting


class Call(NamedTuple):
    """Tensors as the kernels take them, and what all of them are told."""

    input: Tensor  # [B, H, W, C]
    offset: Tensor  # [B, 2 * G * K, Ho * Wo], any strides
    mask: Tensor | None
    weight: Tensor  # [O, kh, kw, C / groups]
    arguments: dict[str, Any]
    problem: settings.Problem

    def tiles(self, kernel: str) -> Tiles:
        return settings.tiles(kernel, self.problem)

    def cell_tiles(self, tiles: Tiles) -> int:
        """How many tiles of output cells there are (`tiles_of` in kernels.py)."""
        height, width = self.arguments["out_height"], self.arguments["out_width"]
        return settings.cell_tiles(tiles, self.problem.cells // (height * width), height, width)


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: Geometry
) -> Tensor:
    out = torch.empty(
        (input.shape[0], weight.shape[0], *offset.shape[2:]),
        dtype=input.dtype,
        device=input.device,
        memory_format=_gpu.layout(input),
    )
    if not out.numel():
        return out
    call = prepared(input, offset, weight, mask, geometry, out)
    if settings.by_columns(call.problem, backward=False):
        from pliant.ops.deform_conv2d import columns

        return columns.forward(call, bias, out)
    tiles = call.tiles("forward")
    grid = call.cell_tiles(tiles), count(call.problem.outs, tiles.outs), call.problem.groups
    bias = None if bias is None else bias.contiguous()
    arguments = {"bias": bias, "out": out, "BIASED": bias is not None, "EARLY": tiles.early}
    launch("forward", grid, tiles, call, arguments)
    return out


def deform_conv2d_backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    grad_offset = offset.new_empty(offset.shape)
    grad_mask = None if mask is None else mask.new_empty(mask.shape)
    if not grad.numel():
        return (
            torch.zeros_like(input),
            grad_offset.zero_(),
            torch.zeros_like(weight),
            None if grad_mask is None else grad_mask.zero_(),
        )
    call = prepared(input, offset, weight, mask, geometry, grad)
    if settings.by_columns(call.problem, backward=True):
        from pliant.ops.deform_conv2d import columns

        grad_input, grad_weight = columns.backward(call, grad, grad_offset, grad_mask)
    else:
        grad_input, grad_weight = _backward(call, grad.flatten(2), grad_offset, grad_mask)
    return (
        grad_input.permute(0, 3, 1, 2).to(input.dtype).contiguous(memory_format=_gpu.layout(input)),
        grad_offset,
        grad_weight.permute(0, 3, 1, 2).contiguous().to(weight.dtype),
        grad_mask,
    )


def _backward(call: Call, grad: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input [B, H, W, C] and weight [O, kh, kw, C / groups] in float32; the others are filled in."""
    grad_input = call.input.new_zeros(call.input.shape, dtype=torch.float32)
    grad_weight = call.weight.new_zeros(call.weight.shape, dtype=torch.float32)
    problem = call.problem
    tiles = call.tiles("backward_samples")
    grid = call.cell_tiles(tiles), problem.taps, grad_offset.shape[1] // (2 * problem.taps)
    arguments = {"grad": grad, "grad_input": grad_input, "grad_offset": grad_offset, "grad_mask": grad_mask}
    launch("backward_samples", grid, tiles, call, arguments)

    tiles = call.tiles("backward_weight")
    units = call.arguments["channels"] // problem.unit
    programs = count(problem.outs, tiles.outs) * problem.taps * units * count(problem.unit, tiles.channels)
    shares = count(_SHARES * _gpu.multiprocessors(grad.device), programs)
    shares = min(shares, call.cell_tiles(tiles))
    launch("backward_weight", (programs, shares), tiles, call, {"grad": grad, "grad_weight": grad_weight}, ("weight",))
    return grad_input, grad_weight


def prepared(
    input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry, out: Tensor
) -> Call:
    """Lay tensors out, and gather what the kernels need to know; `out` has the strides of output or gradient."""
    rows = input.permute(0, 2, 3, 1).contiguous()
    filters = weight.permute(0, 2, 3, 1).contiguous()
    size = offset.shape[2:]
    offset = offset.flatten(2)
    mask = None if mask is None else mask.flatten(2)
    strides = offset.stride(), offset.stride() if mask is None else mask.stride(), out.flatten(2).stride()
    far = _gpu.far_apart(rows, offset, mask, filters, out)
    arguments, problem = _described(
        input.shape, offset.shape[1], weight.shape, size, strides, geometry, input.dtype, input.device,
        _gpu.precision(input.dtype), mask is not None, far,
    )  # fmt: skip
    return Call(rows, offset, mask, filters, arguments, problem)


@functools.lru_cache(maxsize=1024)
def _described(
    shape: tuple[int, ...],
    offsets: int,
    weight_shape: tuple[int, ...],
    size: tuple[int, int],
    strides: tuple[tuple[int, ...], ...],
    geometry: Geometry,
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
    masked: bool,
    far: bool,
) -> tuple[dict[str, Any], settings.Problem]:
    """Numbers that all kernels are told, and what the choice of tiles depends on."""
    batch, channels, height, width = shape
    outs, group_channels, *kernel = weight_shape
    taps = kernel[0] * kernel[1]
    groups, offset_channels = channels // group_channels, channels // (offsets // (2 * taps))
    unit = math.gcd(group_channels, offset_channels)
    arguments: dict[str, Any] = {
        "cells": batch * size[0] * size[1],
        "out_height": size[0],
        "out_width": size[1],
        "height": height,
        "width": width,
        "channels": channels,
        "group_channels": group_channels,
        "group_outs": outs // groups,
        "offset_channels": offset_channels,
        "unit": unit,
    }
    for name, pair in zip(("stride", "padding", "dilation"), geometry[:3], strict=True):
        arguments |= {f"{name}_y": pair[0], f"{name}_x": pair[1]}
    for name, steps in zip(("offset", "mask", "out"), strides, strict=True):
        arguments |= {f"{name}_image": steps[0], f"{name}_channel": steps[1], f"{name}_cell": steps[2]}
    arguments |= {
        "AUTHORS": geometry.border == "authors",
        "MASKED": masked,
        "INDEX": _gpu.index_of(far),
        "PRODUCT": _gpu.product_type(dtype),
        "PRECISION": precision,
        "TAPS": taps,
        "KERNEL_WIDTH": kernel[1],
    }
    problem = settings.Problem(
        dtype, device, arguments["cells"], outs // groups, groups, unit, taps, far, offset_channels
    )
    return arguments, problem


def launch(
    name: str,
    grid: tuple[int, ...],
    tiles: Tiles,
    call: Call,
    arguments: dict[str, Any],
    without: tuple[str, ...] = (),
) -> None:
    """Run a kernel of kernels.py."""
    tensors = {"input": call.input, "offset": call.offset, "mask": call.mask, "weight": call.weight}
    blocks = {"BLOCK_P": tiles.cells, "BLOCK_C": tiles.channels, "BLOCK_O": tiles.outs, "PATCH": tiles.patch}
    everything = tensors | call.arguments | arguments | blocks
    everything["EVEN"] = call.problem.unit % tiles.channels == 0
    kernels = importlib.import_module("pliant.ops.deform_conv2d.kernels")
    wanted = {key: value for key, value in everything.items() if key not in without}
    _gpu.launch(getattr(kernels, name), grid, wanted, **tiles.options)
