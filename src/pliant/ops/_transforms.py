"""Derivatives that `register_autograd` does not give: under `torch.func`, in forward mode, and of gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pliant._after_import import after_import


def function_of(
    op: Any, save: Callable[[Any, tuple[Any, ...], Any], None], differentiate: Callable[..., tuple[Tensor | None, ...]]
) -> Any:
    """A `torch.autograd.Function` of a function of tensors, which `torch.func.grad`, `vjp`, `jacrev` and `vmap` take.

    Args:
        op: the function.
        save, differentiate: as `torch.library.register_autograd` takes them.
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
    op: Any, save: Callable[[Any, tuple[Any, ...], Any], None], differentiate: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Any]:
    """An operator that `torch.func` takes as well, see `function_of`; elsewhere it is the operator itself."""
    function = function_of(op, save, differentiate)

    def transformed(*inputs: Any) -> Any:
        return function.apply(*inputs)

    # Under a transform torch.compile cannot trace into the Function: the call goes into its graph as it is. To say so
    # imports the compiler, which takes longer than importing torch.
    after_import("torch._dynamo", lambda: torch.compiler.allow_in_graph(transformed))

    def call(*inputs: Any) -> Any:
        return transformed(*inputs) if _transforming() else op(*inputs)

    return call


def pull_back(
    function: Callable[..., tuple[Tensor | None, ...]], tensors: Sequence[Tensor | None], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of a function to its tensors, by its own operations, which can be differentiated in turn.

    Args:
        function: of as many tensors, each of which may be None, and so may its results.
        tensors: what it is called with.
        grads: those of its results; one of a result that is None does not count.
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
    """Whether `torch.func` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
