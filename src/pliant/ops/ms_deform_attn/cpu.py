"""Multi-scale deformable attention on the compiled CPU kernels (csrc/ms_deform_attn.cpp)."""

from __future__ import annotations

from torch import Tensor

from pliant.ops import _native
from pliant.ops.ms_deform_attn.levels import Level
from pliant.ops.ms_deform_attn.reference import compute_dtype


def ms_deform_attn(value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor) -> Tensor:
    out = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
    if out.numel() and weights.numel():
        tensors = _native.dense(value, locations, weights)
        _native.kernels.ms_deform_attn(
            *map(_native.described, tensors), levels, _native.described(out), _threads(value, weights)
        )
        return out
    return out.zero_()


def ms_deform_attn_backward(
    grad: Tensor, value: Tensor, levels: list[Level], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide = compute_dtype(value)
    like = value, locations, weights
    grads = [tensor.new_zeros(tensor.shape, dtype=wide) for tensor in like]
    if grad.numel() and weights.numel():
        tensors = _native.dense(grad, value, locations, weights)
        _native.kernels.ms_deform_attn_backward(
            *map(_native.described, tensors), levels, *map(_native.described, grads), _threads(value, weights)
        )
    to_value, to_locations, to_weights = (grad.to(tensor.dtype) for grad, tensor in zip(grads, like, strict=True))
    return to_value, to_locations, to_weights


def _threads(value: Tensor, weights: Tensor) -> int:
    return _native.threads(4 * weights.numel() * value.shape[3])
