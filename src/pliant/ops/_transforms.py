"""Derivatives beyond `register_autograd`: under `torch.func`, in forward mode, and of gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pliant._after_import import after_import
from pliant.ops._autocast import Lowering, register_autocast, without

PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_WITH_DATA = ("cpu", "cuda")


def function_of(
    op: Any, save: Callable[[Any, tuple[Any, ...], Any], None], differentiate: Callable[..., tuple[Tensor | None, ...]]
) -> Any:
    """A function of tensors as a `torch.autograd.Function` that supports `torch.func.grad`, `vjp`, `jacrev` and `vmap`.

    Args:
        op: the function.
        save, differentiate: see `torch.library.register_autograd`.
    """

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return op(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return differentiate(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(f"{op} has no forward-mode derivative (torch.func.jvp, jacfwd, linearize)")

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
            """One after the other."""
            outputs = [
                Call.apply(
                    *(
                        value.select(axis, entry) if isinstance(axis, int) else value
                        for value, axis in zip(inputs, in_dims, strict=True)
                    )
                )
                for entry in range(info.batch_size)
            ]
            if isinstance(outputs[0], Tensor):
                return torch.stack(outputs), 0
            return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])

    return Call


def transformable(
    op: Any,
    kernel: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    differentiate: Callable[..., tuple[Tensor | None, ...]],
    lowered: Sequence[str] = (),
) -> Callable[..., Any]:
    """An operator that supports `torch.func`, see `function_of`, and autocast.

    In eager mode, when nothing but autocast intercepts the dispatcher, the operator is its kernel wrapped in an
    autograd function. The dispatcher and `register_autograd` do the same in several times the time.

    Args:
        op: the operator registered with torch.library.
        kernel: the function that runs on tensors with data.
        save, differentiate: see `torch.library.register_autograd`.
        lowered: the arguments that autocast casts to its dtype; it leaves the others.
    """
    function = function_of(op, save, differentiate)
    lowering = Lowering(op, lowered)
    register_autocast(op, lowering)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = kernel(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return differentiate(ctx, *grads)

    def transformed(*inputs: Any) -> Any:
        return function.apply(*inputs)

    # Under a transform torch.compile cannot trace into the Function, so the call is put into the graph as it is.
    # Registering this imports the compiler, which takes longer than importing torch.
    after_import("torch._dynamo", lambda: torch.compiler.allow_in_graph(transformed))

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return transformed(*inputs) if _transforming() else op(*inputs)
        if _transforming():
            return transformed(*inputs)
        if _watched(inputs):
            return op(*inputs)
        if not torch._C._is_any_autocast_enabled():
            return run(inputs)
        device = next(value.device.type for value in inputs if isinstance(value, Tensor))
        lowers = torch.is_autocast_enabled(device)
        with without(device):
            return run(lowering.cast(device, inputs) if lowers else inputs)

    def run(inputs: Sequence[Any]) -> Any:
        if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            return Eager.apply(*inputs)
        return kernel(*inputs)

    return call


def _watched(inputs: tuple[Any, ...]) -> bool:
    """Whether anybody but autocast takes part in the dispatch of a call: a tracer, a mode, a tensor's own class."""
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return True
    return any(
        isinstance(value, Tensor) and (type(value) not in PLAIN or value.device.type not in _WITH_DATA)
        for value in inputs
    )


def pull_back(
    function: Callable[..., tuple[Tensor | None, ...]], tensors: Sequence[Tensor | None], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of a function with respect to its tensors, computed by differentiable operations.

    Args:
        function: function of the tensors, each of which may be None, and so may its results.
        tensors: its arguments.
        grads: gradients of its results; that of a result that is None is ignored.
    """
    given = [index for index, value in enumerate(tensors) if value is not None]
    results: list[int] = []

    def of_given(*values: Tensor) -> tuple[Tensor, ...]:
        every: list[Tensor | None] = [None] * len(tensors)
        for index, value in zip(given, values, strict=True):
            every[index] = value
        found = function(*every)
        results[:] = [index for index, value in enumerate(found) if value is not None]
        return tuple(value for value in found if value is not None)

    with _without_autocast(grads[0].device.type):
        pull = torch.func.vjp(of_given, *(tensors[index] for index in given))[1]
        found = dict(zip(given, pull(tuple(grads[index] for index in results)), strict=True))
    return tuple(found.get(index) for index in range(len(tensors)))


def _without_autocast(device: str) -> Any:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def _transforming() -> bool:
    """Whether `torch.func` or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
