"""torch.library's side of deformable convolution: schema, fake kernels, autograd, autocast, dispatch.

CPU tensors go to the compiled kernels where this installation has them, a GPU's to Triton's where they take them;
everything else goes to the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops._transforms import pull_back, transformable
from pliant.ops.deform_conv2d import cpu, gpu, reference
from pliant.ops.deform_conv2d.reference import Geometry

_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, str border"
torch.library.define(
    "pliant::deform_conv2d",
    f"(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, {_GEOMETRY}) -> Tensor",
)
torch.library.define(
    "pliant::deform_conv2d_backward",
    f"(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, {_GEOMETRY})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


def _geometry(stride: Any, padding: Any, dilation: Any, border: str) -> Geometry:
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), border)


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *geometry: Any
) -> Tensor:
    arguments = input, offset, weight, bias, mask, _geometry(*geometry)
    if _native.serves(input):
        return cpu.deform_conv2d(*arguments)
    kernels = gpu if _gpu.serves(input) else reference
    return kernels.deform_conv2d(*arguments).contiguous(memory_format=_gpu.layout(input))


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *geometry: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = grad, input, offset, weight, mask, _geometry(*geometry)
    if _native.serves(input):
        grads = cpu.deform_conv2d_backward(*arguments)
    elif _gpu.serves(input) and _gpu.adds_in_any_order():
        grads = gpu.deform_conv2d_backward(*arguments)
    else:
        grads = reference.deform_conv2d_backward(*arguments)
    grad_input = grads[0].contiguous(memory_format=_gpu.layout(input))
    grad_weight = grads[2].contiguous(memory_format=_gpu.layout(weight))
    return grad_input, grads[1], grad_weight, input.new_empty(0) if grads[3] is None else grads[3]


torch.library.impl("pliant::deform_conv2d", "default", forward)
torch.library.impl("pliant::deform_conv2d_backward", "default", backward)


@torch.library.register_fake("pliant::deform_conv2d")
def _(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *geometry: Any
) -> Tensor:
    shape = input.shape[0], weight.shape[0], offset.shape[2], offset.shape[3]
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=_gpu.layout(input))


@torch.library.register_fake("pliant::deform_conv2d_backward")
def _(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *geometry: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=_gpu.layout(input)),
        offset.new_empty(offset.shape),
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=_gpu.layout(weight)),
        input.new_empty(0) if mask is None else mask.new_empty(mask.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, bias, mask, *geometry = inputs
    ctx.save_for_backward(input, offset, weight, mask)
    ctx.geometry = geometry
    ctx.bias_dtype = None if bias is None else bias.dtype


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    grads: tuple[Tensor | None, ...] = (None, None, None, None)
    if any(ctx.needs_input_grad[i] for i in (0, 1, 2, 4)):
        grads = _call_backward(grad, input, offset, weight, mask, *ctx.geometry)
    grad_bias = grad.sum((0, 2, 3)).to(ctx.bias_dtype) if ctx.needs_input_grad[3] else None
    grad_mask = None if mask is None else grads[3]
    return grads[0], grads[1], grads[2], grad_bias, grad_mask, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, input, offset, weight, mask, *geometry = inputs
    ctx.save_for_backward(grad, input, offset, weight, mask)
    ctx.geometry = geometry


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Second-order gradients, by the operations of the reference's backward."""

    def differentiated(grad: Any, input: Any, offset: Any, weight: Any, mask: Any) -> tuple[Tensor | None, ...]:
        return reference.deform_conv2d_backward(grad, input, offset, weight, mask, _geometry(*ctx.geometry))

    return *pull_back(differentiated, ctx.saved_tensors, grads), None, None, None, None


_call_backward = transformable(
    torch.ops.pliant.deform_conv2d_backward.default, backward, _save_backward, _differentiate_backward
)
# Offsets are positions: they keep the precision that they came with. Gradients keep the precision of the forward.
call = transformable(
    torch.ops.pliant.deform_conv2d.default, forward, _save, _differentiate, lowered=("input", "weight", "bias", "mask")
)
torch.library.register_autograd("pliant::deform_conv2d", _differentiate, setup_context=_save)
torch.library.register_autograd("pliant::deform_conv2d_backward", _differentiate_backward, setup_context=_save_backward)
