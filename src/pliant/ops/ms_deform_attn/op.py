"""torch.library's side of multi-scale deformable attention: schema, fake kernels, autograd, autocast, dispatch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops._transforms import pull_back, transformable
from pliant.ops.ms_deform_attn import cpu, gpu, reference
from pliant.ops.ms_deform_attn.levels import levels_of

_TENSORS = "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, Tensor weights"
torch.library.define("pliant::ms_deform_attn", f"({_TENSORS}) -> Tensor")
torch.library.define("pliant::ms_deform_attn_backward", f"(Tensor grad, {_TENSORS}) -> (Tensor, Tensor, Tensor)")


def forward(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    if not _native.serves(value) and _gpu.serves(value):
        return gpu.ms_deform_attn(value, shapes, starts, locations, weights)
    kernels = cpu if _native.serves(value) else reference
    return kernels.ms_deform_attn(value, levels_of(shapes, starts, value.shape[1]), locations, weights)


def backward(
    grad: Tensor, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if not _native.serves(value) and _gpu.serves(value) and _gpu.adds_in_any_order():
        return gpu.ms_deform_attn_backward(grad, value, shapes, starts, locations, weights)
    kernels = cpu if _native.serves(value) else reference
    levels = levels_of(shapes, starts, value.shape[1])
    return kernels.ms_deform_attn_backward(grad, value, levels, locations, weights)


torch.library.impl("pliant::ms_deform_attn", "default", forward)
torch.library.impl("pliant::ms_deform_attn_backward", "default", backward)


@torch.library.register_fake("pliant::ms_deform_attn")
def _(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("pliant::ms_deform_attn_backward")
def _(
    grad: Tensor, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = _call_backward(grad, *ctx.saved_tensors)
    return grad_value, None, None, grad_locations, grad_weights


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Second-order gradients, by the operations of the reference's backward."""
    grad, value, shapes, starts, locations, weights = ctx.saved_tensors
    levels = levels_of(shapes, starts, value.shape[1])

    def differentiated(grad: Any, value: Any, locations: Any, weights: Any) -> tuple[Tensor, ...]:
        return reference.ms_deform_attn_backward(grad, value, levels, locations, weights)

    to_grad, to_value, *rest = pull_back(differentiated, (grad, value, locations, weights), grads)
    return to_grad, to_value, None, None, *rest


_call_backward = transformable(
    torch.ops.pliant.ms_deform_attn_backward.default, backward, _save, _differentiate_backward
)
# Locations are positions: they keep the precision that they came with. Gradients keep that of the forward.
call = transformable(
    torch.ops.pliant.ms_deform_attn.default, forward, _save, _differentiate, lowered=("value", "weights")
)
torch.library.register_autograd("pliant::ms_deform_attn", _differentiate, setup_context=_save)
torch.library.register_autograd("pliant::ms_deform_attn_backward", _differentiate_backward, setup_context=_save)
