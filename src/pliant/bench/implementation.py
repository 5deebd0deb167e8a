"""What a row times: an operator with its tensors, in whatever library."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pliant.bench.rows import Tensors

FLOAT32_TOLERANCE = 2e-5  # the largest difference from the reference, as a part of the reference's largest value
HALF_TOLERANCE = 1e-2  # in bfloat16 and float16


class Missing(Exception):
    """Why an implementation cannot run here."""


class Implementation:
    """One implementation of one row.

    Attributes:
        trains: whether it has a backward.
        tolerance: the largest difference from the reference, as a part of the reference's largest value.
        border: the border rule of a convolution.
        ignored: the row's tensors that do not count: `offset` for samples that stay in place, `mask`.
        version: of the library, where it is not one of this process.
    """

    trains = False
    tolerance = FLOAT32_TOLERANCE
    border = "paper"
    ignored: frozenset[str] = frozenset()
    version = ""

    def forward(self) -> Tensor:
        """The output."""
        raise NotImplementedError

    def gradients(self, grad: Tensor) -> dict[str, Tensor]:
        """Forward and backward: the inputs' gradients, by name, for the gradient of the output."""
        raise NotImplementedError

    def turn(self, training: bool, calls: int) -> float:
        """Seconds of so many calls, forward alone or with the backward."""
        start = time.perf_counter()
        for _ in range(calls):
            self._call(training)
        return time.perf_counter() - start

    def _call(self, training: bool) -> None:
        self.forward()

    def close(self) -> None:
        """Give back what the implementation holds outside this process."""


class InTorch(Implementation):
    """A function of torch tensors, differentiated by autograd.

    Args:
        function: takes the tensors by their names, but `grad`.
        tensors: of the row.
        differentiated: the names of those that get gradients.
        context: what surrounds every call, with its backward.
        dtype: of the output, where it is not that of `grad`.
    """

    trains = True

    def __init__(
        self,
        function: Callable[..., Tensor],
        tensors: Tensors,
        differentiated: Sequence[str] = ("input", "offset", "weight"),
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.function = function
        self.context = context
        self.leaves = {name: tensors[name].detach().requires_grad_() for name in differentiated}
        self.arguments = {name: value for name, value in tensors.items() if name != "grad"} | self.leaves
        self.grad = tensors["grad"].to(dtype)

    def forward(self) -> Tensor:
        with torch.no_grad(), self.context():
            return self.function(**self.arguments)

    def gradients(self, grad: Tensor) -> dict[str, Tensor]:
        with self.context():
            output = self.function(**self.arguments)
            found = torch.autograd.grad(output, list(self.leaves.values()), grad.to(output.dtype))
        return dict(zip(self.leaves, found, strict=True))

    def _call(self, training: bool) -> None:
        if training:
            self.gradients(self.grad)
        else:
            self.forward()
