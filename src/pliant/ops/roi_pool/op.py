"""torch.library's side of the RoI poolings: schema, fake kernels, autograd, autocast, dispatch.

One operator serves the four public functions: `group_size` (1, 1) is RoI pooling, `offset` None is plain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops._transforms import pull_back, transformable
from pliant.ops.roi_pool import cpu, gpu, reference
from pliant.ops.roi_pool.reference import Pooling

_POOLING = (
    "SymInt[2] output_size, SymInt[2] group_size, float spatial_scale, float gamma, str rule, SymInt sample_per_part"
)
torch.library.define("pliant::roi_pool", f"(Tensor input, Tensor rois, Tensor? offset, {_POOLING}) -> Tensor")
torch.library.define(
    "pliant::roi_pool_backward",
    f"(Tensor grad, Tensor input, Tensor rois, Tensor? offset, {_POOLING}) -> (Tensor, Tensor)",
)


def _pooling(output_size: Any, group_size: Any, *rest: Any) -> Pooling:
    return Pooling(tuple(output_size), tuple(group_size), *rest)


def forward(input: Tensor, rois: Tensor, offset: Tensor | None, *pooling: Any) -> Tensor:
    kernels = cpu if _native.serves(input) else gpu if _gpu.serves(input) else reference
    return kernels.roi_pool(input, rois, offset, _pooling(*pooling))


def backward(grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, *pooling: Any) -> tuple[Tensor, Tensor]:
    triton = _gpu.serves(input) and _gpu.adds_in_any_order()
    kernels = cpu if _native.serves(input) else gpu if triton else reference
    grad_input, grad_offset = kernels.roi_pool_backward(grad, input, rois, offset, _pooling(*pooling))
    grad_input = grad_input.contiguous(memory_format=_gpu.layout(input))
    return grad_input, input.new_empty(0) if grad_offset is None else grad_offset


torch.library.impl("pliant::roi_pool", "default", forward)
torch.library.impl("pliant::roi_pool_backward", "default", backward)


@torch.library.register_fake("pliant::roi_pool")
def _(input: Tensor, rois: Tensor, offset: Tensor | None, output_size: Any, group_size: Any, *rest: Any) -> Tensor:
    channels = input.shape[1] // (group_size[0] * group_size[1])
    return input.new_empty(rois.shape[0], channels, *output_size)


@torch.library.register_fake("pliant::roi_pool_backward")
def _(grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, *pooling: Any) -> tuple[Tensor, Tensor]:
    no_grad = input.new_empty(0)
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=_gpu.layout(input))
    return grad_input, no_grad if offset is None else offset.new_empty(offset.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, offset, *pooling = inputs
    ctx.save_for_backward(input, rois, offset)
    ctx.pooling = pooling


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, rois, offset = ctx.saved_tensors
    grad_input, grad_offset = _call_backward(grad, input, rois, offset, *ctx.pooling)
    return grad_input, None, None if offset is None else grad_offset, *(None,) * len(ctx.pooling)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, input, rois, offset, *pooling = inputs
    ctx.save_for_backward(grad, input, rois, offset)
    ctx.pooling = pooling


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Second-order gradients, by the operations of the reference's backward."""
    grad, input, rois, offset = ctx.saved_tensors

    def differentiated(grad: Any, input: Any, offset: Any) -> tuple[Tensor | None, ...]:
        return reference.roi_pool_backward(grad, input, rois, offset, _pooling(*ctx.pooling))

    to_grad, to_input, to_offset = pull_back(differentiated, (grad, input, offset), grads)
    return to_grad, to_input, None, to_offset, *(None,) * len(ctx.pooling)


_call_backward = transformable(
    torch.ops.pliant.roi_pool_backward.default, backward, _save_backward, _differentiate_backward
)
# RoIs and offsets are positions: they keep the precision that they came with. Gradients keep that of the forward.
call = transformable(torch.ops.pliant.roi_pool.default, forward, _save, _differentiate, lowered=("input",))
torch.library.register_autograd("pliant::roi_pool", _differentiate, setup_context=_save)
torch.library.register_autograd("pliant::roi_pool_backward", _differentiate_backward, setup_context=_save_backward)
