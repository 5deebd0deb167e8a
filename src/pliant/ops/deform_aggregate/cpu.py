"""Deformable aggregation on the compiled CPU kernels (csrc/deform_aggregate.cpp)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pliant.ops import _native
from pliant.ops.deform_aggregate.geometry import Geometry
from pliant.ops.deform_aggregate.reference import compute_dtype


def deform_aggregate(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    out = input.new_empty(*offset.shape[:3], input.shape[3])
    if out.numel():
        tensors = _native.dense(input, offset, mask)
        _native.kernels.deform_aggregate(
            *map(_native.described, tensors), *_arguments(geometry), _native.described(out), _threads(input, mask)
        )
    return out


def deform_aggregate_backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    wide = compute_dtype(input)
    like = input, offset, mask
    grads = [tensor.new_zeros(tensor.shape, dtype=wide) for tensor in like]
    if grad.numel():
        tensors = _native.dense(grad, input, offset, mask)
        _native.kernels.deform_aggregate_backward(
            *map(_native.described, tensors),
            *_arguments(geometry),
            *map(_native.described, grads),
            _threads(input, mask),
        )
    to_input, to_offset, to_mask = (grad.to(tensor.dtype) for grad, tensor in zip(grads, like, strict=True))
    return to_input, to_offset, to_mask


def _arguments(geometry: Geometry) -> tuple[Any, ...]:
    return geometry.stride, [side for tap in geometry.taps() for side in tap], geometry.offset_scale


def _threads(input: Tensor, mask: Tensor) -> int:
    return _native.threads(4 * mask.numel() * (input.shape[3] // mask.shape[3]))
