"""Deformable aggregation on the Triton kernels (kernels.py)."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops.deform_aggregate.geometry import Geometry

_ELEMENTS = 1024  # of a program, lines times channels
_WARPS = 4


def deform_aggregate(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    out = input.new_empty(*offset.shape[:3], input.shape[3])
    if out.numel():
        _launch("forward", input, offset, mask, geometry, {"out": out})
    return out


def deform_aggregate_backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    grad_input = input.new_zeros(input.shape, dtype=torch.float32)
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    if grad.numel():
        grads = {"grad_input": grad_input, "grad_offset": grad_offset, "grad_mask": grad_mask}
        _launch("backward", input, offset, mask, geometry, {"grad": grad.contiguous()} | grads)
    return grad_input.to(input.dtype), grad_offset, grad_mask


def _launch(name: str, input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry, others: dict[str, Any]) -> None:
    groups, points = mask.shape[3:]
    channels = input.shape[3] // groups
    lines = mask.numel() // points
    block = 1 << (channels - 1).bit_length()
    elements = _ELEMENTS // 4 if _native.interpreting() else _ELEMENTS
    tensors = input.contiguous(), offset.contiguous(), mask.contiguous()
    pairs = {
        "kernel": geometry.kernel_size,
        "stride": geometry.stride,
        "padding": geometry.padding,
        "dilation": geometry.dilation,
    }
    arguments = {
        **dict(zip(("input", "offset", "mask"), tensors, strict=True)),
        "lines": lines,
        "height": input.shape[1],
        "width": input.shape[2],
        "groups": groups,
        "channels": channels,
        "out_height": mask.shape[1],
        "out_width": mask.shape[2],
        "points": points,
        **{f"{what}_{axis}": pair[i] for what, pair in pairs.items() for i, axis in enumerate("yx")},
        "scale": geometry.offset_scale,
        "REMOVE_CENTER": geometry.remove_center,
        "INDEX": _gpu.index_type(*tensors),
        "BLOCK_N": max(1, elements // block),
        "BLOCK_C": block,
    } | others
    kernels = importlib.import_module("pliant.ops.deform_aggregate.kernels")
    # A fused multiply and add would move a point that is meant for a cell's centre to either side of it.
    _gpu.launch(getattr(kernels, name), (-(-lines // arguments["BLOCK_N"]),), arguments, num_warps=_WARPS,
                enable_fp_fusion=False)  # fmt: skip
