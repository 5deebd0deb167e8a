"""The compiled CPU kernels, if this installation has them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
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
    _missing = f"the compiled kernels are not installed ({error}); " + (
        "on Windows there are none" if sys.platform == "win32" else "install again with GCC 12 or Clang at hand"
    )

REFERENCE = "reference"
TRITON = "triton"
_DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_LARGE = 1 << 18  # elements of an input with which a call takes so long that its user should know why
_SMALL = 1 << 21  # multiplications that one thread completes before a second one has started
_instead = ""  # used in place of the compiled kernels: another of `available`


def why_not() -> str | None:
    """The reason why the compiled kernels do not run on CPU tensors, or None if they do."""
    if kernels is None:
        return _missing
    if _instead:
        return f'{"the reference was" if reference_asked() else "the GPU kernels were"} asked for, by use("{_instead}")'
    return None


def reference_asked() -> bool:
    """Whether `use` chose the reference, for every device."""
    return _instead == REFERENCE


def serves(tensor: Tensor) -> bool:
    """Whether the compiled kernels run on this tensor. Warns once, at a large one, if the installation lacks them."""
    if tensor.device.type != "cpu":
        return False
    if kernels is None and not _instead and tensor.numel() >= _LARGE:
        _warn_of_the_reference()
    return why_not() is None


@functools.cache
def _warn_of_the_reference() -> None:
    warnings.warn(
        f"pliant's operators run on the reference, in plain PyTorch, which takes several times as long: {_missing}",
        RuntimeWarning,
        stacklevel=2,
    )


def available() -> list[str]:
    """The instruction sets of the compiled kernels that this processor supports, the best first, and the reference.

    The GPU kernels are listed between them if Triton interprets them on the CPU.
    """
    compiled = [] if kernels is None else kernels.instruction_sets()
    return [*compiled, *([TRITON] if interpreting() else []), REFERENCE]


def current() -> str:
    """The one of `available` that runs."""
    if why_not():
        return _instead or REFERENCE
    return str(kernels.instruction_set())


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU (TRITON_INTERPRET=1, set before Python starts)."""
    return os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run CPU tensors on another of `available`, in all threads of the process, for tests and comparisons.

    With the reference, GPU tensors use it too.

    Raises:
        ValueError: if this processor or installation does not have it.
    """
    global _instead
    if name not in available():
        raise ValueError(f"kernels must be one of {', '.join(map(repr, available()))}, got {name!r}")
    before, before_set = _instead, None if kernels is None else kernels.instruction_set()
    _instead = name if name in (REFERENCE, TRITON) else ""
    if not _instead:
        kernels.use(name)
    try:
        yield
    finally:
        _instead = before
        if before_set is not None:
            kernels.use(before_set)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def described(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """A tensor as the compiled kernels take it: address, dtype, shape, strides."""
    if tensor is None:
        return None
    return tensor.data_ptr(), _DTYPES[tensor.dtype], tuple(tensor.shape), tensor.stride()


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if its address is not a multiple of its element size, as torch.frombuffer allows."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors made contiguous. Keep the result until the kernel has finished, which only knows addresses."""
    return [None if tensor is None else aligned(tensor.contiguous()) for tensor in tensors]


def threads(multiplications: int) -> int:
    """The number of threads for this amount of work, at most torch's."""
    return 1 if multiplications < _SMALL else torch.get_num_threads()
