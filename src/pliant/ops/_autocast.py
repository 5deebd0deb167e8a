"""Autocast for operators some of whose arguments keep their precision, such as positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("pliant", "FRAGMENT")
_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "xpu": "AutocastXPU", "mps": "AutocastMPS"}


def register_autocast(op: Any, lowered: Sequence[str]) -> None:
    """Under autocast, cast the arguments named in `lowered` to the autocast dtype, and leave the others."""
    names = [argument.name for argument in op._schema.arguments]
    for device, key in _KEYS.items():
        _LIBRARY.impl(op, _kernel(op, names, frozenset(lowered), device, key), key)


def _kernel(op: Any, names: list[str], lowered: frozenset[str], device: str, key: str) -> Any:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)

        def lower(name: str, value: Any) -> Any:
            lowers = name in lowered and isinstance(value, Tensor) and value.dtype != torch.float64
            return value.to(dtype) if lowers else value

        lower_args = [lower(name, value) for name, value in zip(names, args, strict=False)]
        lower_kwargs = {name: lower(name, value) for name, value in kwargs.items()}
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*lower_args, **lower_kwargs)

    return call
