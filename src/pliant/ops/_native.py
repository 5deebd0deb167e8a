"""The compiled CPU kernels, where this installation has them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

kernels: Any = None
_missing = ""
try:
    kernels = importlib.import_module("pliant._kernels")
except ImportError as error:  # installed without a compiler, or built for another Python
    _missing = f"the compiled kernels are not installed ({error}); install again with a C++17 compiler at hand"

REFERENCE = "reference"
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_SMALL = 1 << 21  # multiplications that one thread does before a second one has started
_reference_only = False


def why_not() -> str | None:
    """Why the compiled kernels do not run on CPU tensors; None where they do."""
    if kernels is None:
        return _missing
    if _reference_only:
        return 'the reference was asked for, by use("reference")'
    return None


def serves(tensor: Tensor) -> bool:
    """Whether the compiled kernels take this tensor's call."""
    return tensor.device.type == "cpu" and why_not() is None


def available() -> list[str]:
    """The instruction sets of the compiled kernels that this processor runs, the best first, and the reference."""
    return [*([] if kernels is None else kernels.instruction_sets()), REFERENCE]


def current() -> str:
    """Which of `available` runs."""
    return REFERENCE if why_not() else kernels.instruction_set()


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run CPU tensors by another of `available`, for tests and comparisons; all threads of the process at once.

    Raises:
        ValueError: if this processor or installation does not have it.
    """
    global _reference_only
    if name not in available():
        raise ValueError(f"kernels must be one of {', '.join(map(repr, available()))}, got {name!r}")
    before, before_set = _reference_only, None if kernels is None else kernels.instruction_set()
    _reference_only = name == REFERENCE
    if name != REFERENCE:
        kernels.use(name)
    try:
        yield
    finally:
        _reference_only = before
        if before_set is not None:
            kernels.use(before_set)


def described(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """A tensor as the compiled kernels take it: address, dtype, shape, strides."""
    if tensor is None:
        return None
    return tensor.data_ptr(), _DTYPES[tensor.dtype], tuple(tensor.shape), tensor.stride()


def dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """Each tensor made contiguous. Keep what is returned until the kernel is: it knows addresses only."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def threads(multiplications: int) -> int:
    """How many threads a call of so much work is worth, at most torch's number."""
    return 1 if multiplications < _SMALL else torch.get_num_threads()
