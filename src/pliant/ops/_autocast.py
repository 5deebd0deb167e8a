"""Autocast for operators some of whose arguments keep their precision, such as positions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("pliant", "FRAGMENT")
_NAMES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU", "mps": "AutocastMPS"}
_KEYS = {device: torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for device, name in _NAMES.items()}


class Lowering:
    """What autocast does with an operator: the arguments named in `lowered` are cast, and the others left.

    Args:
        op: the operator.
        lowered: names of arguments.
    """

    def __init__(self, op: Any, lowered: Collection[str]) -> None:
        self._names = [argument.name for argument in op._schema.arguments]
        self._lowered = frozenset(lowered)

    def cast(self, device: str, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as autocast on a device passes them on."""
        dtype = torch.get_autocast_dtype(device)
        return [self._cast(name, value, dtype) for name, value in zip(self._names, arguments, strict=False)]

    def cast_named(self, device: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The same for arguments by their names."""
        dtype = torch.get_autocast_dtype(device)
        return {name: self._cast(name, value, dtype) for name, value in arguments.items()}

    def _cast(self, name: str, value: Any, dtype: torch.dtype) -> Any:
        lowers = name in self._lowered and isinstance(value, Tensor) and value.dtype != torch.float64
        return value.to(dtype) if lowers else value


def without(device: str) -> AbstractContextManager[Any]:
    """Whatever runs inside is not cast again."""
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(_KEYS[device])
    return guard


def register_autocast(op: Any, lowering: Lowering) -> None:
    """Cast arguments under autocast, on every device."""
    for device, key in _NAMES.items():
        _LIBRARY.impl(op, _kernel(op, lowering, device), key)


def _kernel(op: Any, lowering: Lowering, device: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = lowering.cast(device, args), lowering.cast_named(device, kwargs)  # type: ignore[assignment]
        with without(device):
            return op(*args, **kwargs)

    return call
