"""Multi-scale deformable attention on the Triton kernels (kernels.py).

What levels say is not looked at on the host, which would wait for the device: one that does not lie in the value gives
NaN.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu, _native

_ELEMENTS = 1024  # of a program, lines times channels
_WARPS = 4


def ms_deform_attn(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    out = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if not weights.numel():
        return out.zero_()
    if out.numel():
        _launch("forward", value, shapes, starts, locations, weights, {"out": out})
    return out


def ms_deform_attn_backward(
    grad: Tensor, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_value = value.new_zeros(value.shape, dtype=torch.float32)
    grads = {
        "grad_value": grad_value,
        "grad_locations": torch.zeros_like(locations, memory_format=torch.contiguous_format),
        "grad_weights": torch.zeros_like(weights, memory_format=torch.contiguous_format),
    }
    if grad.numel() and weights.numel():
        _launch("backward", value, shapes, starts, locations, weights, {"grad": grad.contiguous()} | grads)
    return grad_value.to(value.dtype), grads["grad_locations"], grads["grad_weights"]


def _launch(
    name: str,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    others: dict[str, Any],
) -> None:
    _, rows, heads, channels = value.shape
    lines = weights.shape[0] * weights.shape[1] * heads
    block = 1 << (channels - 1).bit_length()
    elements = _ELEMENTS // 4 if _native.interpreting() else _ELEMENTS
    tensors = value.contiguous(), locations.contiguous(), weights.contiguous()
    arguments = {
        "value": tensors[0],
        "shapes": shapes.contiguous(),
        "starts": starts.contiguous(),
        "locations": tensors[1],
        "weights": tensors[2],
        "lines": lines,
        "queries": weights.shape[1],
        "rows": rows,
        "heads": heads,
        "channels": channels,
        "levels": weights.shape[3],
        "points": weights.shape[4],
        "INDEX": _gpu.index_type(*tensors),
        "BLOCK_N": max(1, elements // block),
        "BLOCK_C": block,
    } | others
    kernels = importlib.import_module("pliant.ops.ms_deform_attn.kernels")
    grid = (-(-lines // arguments["BLOCK_N"]),)
    # A fused multiply and add would move a location that names a cell's centre to either side of it.
    _gpu.launch(getattr(kernels, name), grid, arguments, num_warps=_WARPS, enable_fp_fusion=False)
