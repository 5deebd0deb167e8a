"""What every operator checks of its arguments, and the one error it raises."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class ShapeError(ValueError, RuntimeError):
    """An argument has the wrong shape. A ValueError, and a RuntimeError as torchvision's operators raise."""


def tensor(name: str, value: object, dimensions: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.dim() != dimensions:
        raise ShapeError(f"{name} must have {dimensions} dimensions, got shape {list(value.shape)}")


def same_kind(*, or_float32: bool = False, **tensors: Tensor | None) -> None:
    """All on one device, floating point, and of the first one's dtype.

    With `or_float32`, the others may also be float32 beside a half-precision first: positions that autocast
    leaves as they are.
    """
    (first_name, first), *others = [(name, value) for name, value in tensors.items() if value is not None]
    if first.dtype not in FLOATING:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(f"{first_name} must have dtype {allowed}, got {first.dtype}")
    for name, value in others:
        if value.device != first.device:
            raise ValueError(f"{name} is on {value.device} and {first_name} on {first.device}: use one device")
        if value.dtype == first.dtype or torch.is_autocast_enabled(first.device.type):
            continue
        if not (or_float32 and value.dtype == torch.float32 and first.dtype.itemsize == 2):
            raise TypeError(f"{name} has dtype {value.dtype} and {first_name} {first.dtype}: use one dtype")


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def pair(name: str, value: int | tuple[int, int], least: int) -> None:
    values = (value, value) if isinstance(value, int) else tuple(value)
    # A tuple of types: the compiler of torch 2.6 does not know unions here.
    if len(values) != 2 or not all(isinstance(item, (int, torch.SymInt)) for item in values):
        raise ShapeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if any(item < least for item in values):
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
