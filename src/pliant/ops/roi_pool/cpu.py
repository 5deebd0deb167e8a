"""The RoI poolings on the compiled CPU kernels (csrc/roi_pool.cpp)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pliant.ops import _native
from pliant.ops.deform_conv2d.reference import compute_dtype
from pliant.ops.roi_pool.reference import Pooling, check_rois

_RULES = ("whole_cells", "authors_whole_cells", "authors_samples")  # in the order of csrc/kernels.h


def roi_pool(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    check_rois(rois.to(compute_dtype(input)), input.shape[0])
    channels = input.shape[1] // (pooling.group_size[0] * pooling.group_size[1])
    out = input.new_empty(rois.shape[0], channels, *pooling.output_size)
    if out.numel():
        tensors = [_native.aligned(input), *_native.dense(rois, offset)]
        _native.kernels.roi_pool(
            *map(_native.described, tensors), *_arguments(pooling), _native.described(out), _threads(out)
        )
    return out


def roi_pool_backward(
    grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling
) -> tuple[Tensor, Tensor | None]:
    check_rois(rois.to(compute_dtype(input)), input.shape[0])
    wide = compute_dtype(input)
    grad_input = input.new_zeros(input.shape, dtype=wide)
    grad_offset = None if offset is None else offset.new_zeros(offset.shape, dtype=wide)
    if grad.numel():
        tensors = [*_native.dense(grad), _native.aligned(input), *_native.dense(rois, offset)]
        _native.kernels.roi_pool_backward(
            *map(_native.described, tensors),
            *_arguments(pooling),
            _native.described(grad_input),
            _native.described(grad_offset),
            _threads(grad),
        )
    narrow = None if grad_offset is None or offset is None else grad_offset.to(offset.dtype)
    return grad_input.to(input.dtype), narrow


def _arguments(pooling: Pooling) -> tuple[Any, ...]:
    sizes = pooling.output_size, pooling.group_size, pooling.spatial_scale, pooling.gamma
    return *sizes, _RULES.index(pooling.rule), pooling.sample_per_part


def _threads(bins: Tensor) -> int:
    return _native.threads(16 * bins.numel())
