"""The operators under `torch.func` and forward mode, where what `register_autograd` makes stops or loses tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pliant._after_import import after_import


def transformable(
    op: Any, save: Callable[[Any, tuple[Any, ...], Any], None], differentiate: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Any]:
    """An operator that `torch.func.grad`, `vjp`, `jacrev` and `vmap` take as well; elsewhere it is the operator itself.

    Args:
        op: the operator.
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

    def transformed(*inputs: Any) -> Any:
        return Call.apply(*inputs)

    # Under a transform torch.compile cannot trace into the Function: the call goes into its graph as it is. To say so
    # imports the compiler, which takes longer than importing torch.
    after_import("torch._dynamo", lambda: torch.compiler.allow_in_graph(transformed))

    def call(*inputs: Any) -> Any:
        return transformed(*inputs) if _transforming() else op(*inputs)

    return call


def _transforming() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
