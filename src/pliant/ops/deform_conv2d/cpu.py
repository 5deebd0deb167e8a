"""Deformable convolution on the compiled CPU kernels (csrc/deform_conv2d_forward.cpp and _backward.cpp)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pliant.ops import _native
from pliant.ops.deform_conv2d.reference import Geometry, compute_dtype


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: Geometry
) -> Tensor:
    out = input.new_empty(input.shape[0], weight.shape[0], *offset.shape[2:])
    if out.numel():
        tensors = [_native.aligned(input), *_native.dense(offset, weight, bias, mask)]
        _native.kernels.deform_conv2d(
            *map(_native.described, tensors),
            *_arguments(geometry),
            _native.described(out),
            _native.threads(_work(out, weight)),
        )
    return out


def deform_conv2d_backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    wide = compute_dtype(input)
    like = (input, offset, weight, *(() if mask is None else (mask,)))
    grads = [tensor.new_zeros(tensor.shape, dtype=wide) for tensor in like]
    if grad.numel():
        tensors = [_native.aligned(grad), _native.aligned(input), *_native.dense(offset, weight, mask)]
        _native.kernels.deform_conv2d_backward(
            *map(_native.described, tensors),
            *_arguments(geometry),
            *map(_native.described, (*grads, None)[:4]),
            _native.threads(2 * _work(grad, weight)),
        )
    grad_input, grad_offset, grad_weight, *grad_mask = (
        value.to(tensor.dtype) for value, tensor in zip(grads, like, strict=True)
    )
    return grad_input, grad_offset, grad_weight, grad_mask[0] if grad_mask else None


def _arguments(geometry: Geometry) -> tuple[Any, ...]:
    return geometry.stride, geometry.padding, geometry.dilation, geometry.border == "authors"


def _work(out: Tensor, weight: Tensor) -> int:
    return out.numel() * weight[0].numel()
