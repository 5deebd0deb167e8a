"""torch.library's side of deformable aggregation: schema, fake kernels, autograd, autocast, dispatch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops._transforms import pull_back, transformable
from pliant.ops.deform_aggregate import cpu, gpu, reference
from pliant.ops.deform_aggregate.geometry import Geometry

_ARGUMENTS = (
    "Tensor input, Tensor offset, Tensor mask, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, float offset_scale, bool remove_center"
)
torch.library.define("pliant::deform_aggregate", f"({_ARGUMENTS}) -> Tensor")
torch.library.define("pliant::deform_aggregate_backward", f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")


def _geometry(
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, offset_scale: float, remove_center: bool
) -> Geometry:
    return Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), offset_scale, remove_center)


def forward(input: Tensor, offset: Tensor, mask: Tensor, *geometry: Any) -> Tensor:
    kernels = cpu if _native.serves(input) else gpu if _gpu.serves(input) else reference
    return kernels.deform_aggregate(input, offset, mask, _geometry(*geometry))


def backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *geometry: Any
) -> tuple[Tensor, Tensor, Tensor]:
    on_gpu = _gpu.serves(input) and _gpu.adds_in_any_order()
    kernels = cpu if _native.serves(input) else gpu if on_gpu else reference
    return kernels.deform_aggregate_backward(grad, input, offset, mask, _geometry(*geometry))


torch.library.impl("pliant::deform_aggregate", "default", forward)
torch.library.impl("pliant::deform_aggregate_backward", "default", backward)


@torch.library.register_fake("pliant::deform_aggregate")
def _(input: Tensor, offset: Tensor, mask: Tensor, *geometry: Any) -> Tensor:
    return input.new_empty(*offset.shape[:3], input.shape[3])


@torch.library.register_fake("pliant::deform_aggregate_backward")
def _(grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *geometry: Any) -> tuple[Tensor, Tensor, Tensor]:
    return input.new_empty(input.shape), offset.new_empty(offset.shape), mask.new_empty(mask.shape)


_GEOMETRY = (None,) * 6  # gradients of what is no tensor


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_call_backward(grad, *ctx.saved_tensors, *ctx.geometry), *_GEOMETRY


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.geometry = inputs[4:]


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Second-order gradients, by the operations of the reference's backward."""

    def differentiated(grad: Any, input: Any, offset: Any, mask: Any) -> tuple[Tensor, ...]:
        return reference.deform_aggregate_backward(grad, input, offset, mask, _geometry(*ctx.geometry))

    return *pull_back(differentiated, ctx.saved_tensors, grads), *_GEOMETRY


_call_backward = transformable(
    torch.ops.pliant.deform_aggregate_backward.default, backward, _save_backward, _differentiate_backward
)
# Offsets are positions: they keep the precision that they came with. Gradients keep that of the forward.
call = transformable(
    torch.ops.pliant.deform_aggregate.default, forward, _save, _differentiate, lowered=("input", "mask")
)
torch.library.register_autograd("pliant::deform_aggregate", _differentiate, setup_context=_save)
torch.library.register_autograd(
    "pliant::deform_aggregate_backward", _differentiate_backward, setup_context=_save_backward
)
