"""Deformable convolution on a GPU: kernels that multiply as they gather (kernels.py), or one of two other designs.

Depthwise convolutions have kernels of their own (depthwise.py); others write columns for torch to multiply (columns.py)
where that is faster.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
    prepared: dict[Any, _gpu.Prepared]  # launches of calls like this one

    def tiles(self, kernel: str) -> Tiles:
        return settings.tiles(kernel, self.problem)

    @property
    def offset_groups(self) -> int:
        return self.problem.offset_groups

    def blocks(self, tiles: Tiles) -> dict[str, Any]:
        """What the kernels are told of a tile. Those that multiply have outputs in it, and take units of channels."""
        channels = self.problem.unit if tiles.outs else self.problem.sampled
        return {
            "BLOCK_P": tiles.cells,
            "BLOCK_C": tiles.channels,
            "BLOCK_O": tiles.outs,
            "PATCH": tiles.patch,
            "PACK": tiles.pack,
            "UNROLL": tiles.unroll,
            "EVEN": channels % (tiles.channels * tiles.unroll) == 0,
        }

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
    input, weight = _widened(input, offset, weight)
    call = prepared(input, offset, weight, mask, geometry, out)
    if settings.depthwise(call.problem):
        from pliant.ops.deform_conv2d import depthwise

        return depthwise.forward(call, bias, out)
    if settings.by_columns(call.problem, backward=False):
        from pliant.ops.deform_conv2d import columns

        return columns.forward(call, bias, out)

    def described() -> Launch:
        tiles = call.tiles("forward")
        grid = call.cell_tiles(tiles), count(call.problem.outs, tiles.outs), call.problem.groups
        return Launch("kernels.forward", grid, tiles, {"BIASED": bias is not None, "EARLY": tiles.early})

    bias = None if bias is None else bias.contiguous()
    run(call, ("forward", bias is None), described, {"weight": call.weight, "bias": bias, "out": out})
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
    narrow, (input, weight) = input.shape[1], _widened(input, offset, weight)
    call = prepared(input, offset, weight, mask, geometry, grad)
    if settings.depthwise(call.problem):
        from pliant.ops.deform_conv2d import depthwise

        grad_input, grad_weight = depthwise.backward(call, grad, grad_offset, grad_mask)
    elif settings.by_columns(call.problem, backward=True):
        from pliant.ops.deform_conv2d import columns

        grad_input, grad_weight = columns.backward(call, grad, grad_offset, grad_mask)
    else:
        grad_input, grad_weight = _backward(call, grad.flatten(2), grad_offset, grad_mask)
    grad_input, grad_weight = (_narrowed(each, narrow, call.offset_groups) for each in (grad_input, grad_weight))
    return (
        grad_input.permute(0, 3, 1, 2).to(input.dtype),
        grad_offset,
        grad_weight.permute(0, 3, 1, 2).to(weight.dtype),
        grad_mask,
    )


def _widened(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Input [B, C, H, W] and weight, with channels of zeros at the end of each offset group if it has very few."""
    channels, taps = input.shape[1], weight.shape[2] * weight.shape[3]
    offset_groups = offset.shape[1] // (2 * taps)
    missing = settings.missing_channels(channels // offset_groups, channels // weight.shape[1], weight.shape[0])
    if not missing:
        return input, weight
    padding = (0, 0, 0, 0, 0, missing)
    both = (F.pad(each.unflatten(1, (offset_groups, -1)), padding).flatten(1, 2) for each in (input, weight))
    return next(both).contiguous(memory_format=_gpu.layout(input)), next(both)


def _narrowed(rows: Tensor, channels: int, offset_groups: int) -> Tensor:
    """[..., C] without the channels that `_widened` added to the input's `channels`; a weight's may be of one group."""
    added = rows.shape[-1] - channels
    if added <= 0:
        return rows
    return rows.unflatten(-1, (offset_groups, -1))[..., : -(added // offset_groups)].flatten(-2)


def _backward(call: Call, grad: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input [B, H, W, C] and weight [O, kh, kw, C / groups] in float32; the others are filled in."""
    grad_input = call.input.new_zeros(call.input.shape, dtype=torch.float32)
    grad_weight = call.weight.new_zeros(call.weight.shape, dtype=torch.float32)
    problem = call.problem

    def samples() -> Launch:
        tiles = call.tiles("backward_samples")
        return Launch("kernels.backward_samples", (call.cell_tiles(tiles), problem.taps, problem.offset_groups), tiles)

    tensors = {"weight": call.weight, "grad": grad, "grad_input": grad_input}
    run(call, "backward_samples", samples, {**tensors, "grad_offset": grad_offset, "grad_mask": grad_mask})

    def weights() -> Launch:
        tiles = call.tiles("backward_weight")
        units = call.arguments["channels"] // problem.unit
        programs = count(problem.outs, tiles.outs) * problem.taps * units * count(problem.unit, tiles.channels)
        shares = count(_SHARES * _gpu.multiprocessors(problem.device), programs)
        return Launch("kernels.backward_weight", (programs, min(shares, call.cell_tiles(tiles))), tiles)

    run(call, "backward_weight", weights, {"grad": grad, "grad_weight": grad_weight})
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
    described = _described(
        input.shape, offset.shape[1], weight.shape, size, strides, geometry, input.dtype, input.device,
        _gpu.precision(input.dtype), mask is not None, far,
    )  # fmt: skip
    return Call(rows, offset, mask, filters, *described)


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
) -> tuple[dict[str, Any], settings.Problem, dict[Any, _gpu.Prepared]]:
    """Numbers that all kernels are told, what the choice of tiles depends on, and room for launches."""
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
        "sampled": offset_channels,
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
        dtype, device, arguments["cells"], outs // groups, groups, unit, taps, far, offset_channels,
        channels // offset_channels,
    )  # fmt: skip
    return arguments, problem, {}


class Launch(NamedTuple):
    """How a kernel is launched, but for the tensors."""

    kernel: str  # with its module in this package
    grid: tuple[int, ...]
    tiles: Tiles
    arguments: Mapping[str, Any] = MappingProxyType({})  # beside those of the call and of the tiles


def run(call: Call, key: Any, described: Callable[[], Launch], tensors: dict[str, Tensor | None]) -> None:
    """Launch a kernel.

    Args:
        call: the call; input, offset and mask are its own.
        key: tells launches of calls like this one apart.
        described: returns the launch; it is called for the first of a key.
        tensors: all others that the kernel takes, by name.
    """
    forced = settings.any_forced()
    found = None if forced else call.prepared.get(key)
    if found is None:
        launch = described()
        module, name = launch.kernel.split(".")
        kernel = getattr(importlib.import_module(f"pliant.ops.deform_conv2d.{module}"), name)
        arguments = {**call.arguments, **call.blocks(launch.tiles), **launch.arguments}
        found = _gpu.Prepared(kernel, launch.grid, arguments, launch.tiles.options)
        if not forced:
            call.prepared[key] = found
    found.run({"input": call.input, "offset": call.offset, "mask": call.mask, **tensors})
