"""Argument checks shared by operators and layers, and the errors that they raise.

Each error is also a RuntimeError, because torch's and torchvision's operators raise those, so code that catches their
errors catches these. Shapes and values are checked before dtypes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class ArgumentError(ValueError, RuntimeError):
    """An argument has a value that the operator does not accept."""


class ShapeError(ArgumentError):
    """An argument has the wrong shape."""


class ArgumentTypeError(TypeError, RuntimeError):
    """An argument has the wrong type or dtype."""


def tensor(name: str, value: object, *dimensions: int) -> None:
    """Check that `value` is a tensor with one of these numbers of dimensions."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.dim() not in dimensions:
        allowed = " or ".join(map(str, dimensions))
        raise ShapeError(f"{name} must have {allowed} dimensions, got shape {list(value.shape)}")


def same_device(**tensors: Tensor | None) -> None:
    """Check that all tensors are on the device of the first one."""
    (first_name, first), *others = [(name, value) for name, value in tensors.items() if value is not None]
    for name, value in others:
        if value.device != first.device:
            raise ArgumentError(f"{name} is on {value.device} and {first_name} on {first.device}: use one device")


def same_dtype(*, positions: bool = False, **tensors: Tensor | None) -> None:
    """Check that all tensors are floating point and have the dtype of the first one, after autocast.

    With `positions`, the tensors after the first one are positions. They may be float32 if the first one is half
    precision, and of any precision under autocast, which does not convert them.
    """
    (first_name, first), *others = [(name, value) for name, value in tensors.items() if value is not None]
    if first.dtype not in FLOATING:
        floating = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise ArgumentTypeError(f"{first_name} must have dtype {floating}, got {first.dtype}")
    dtype = _lowered(first)
    for name, value in others:
        if value.dtype == first.dtype:
            continue
        if positions:
            half = dtype.itemsize == 2 and value.dtype == torch.float32
            allowed = half or (value.dtype in FLOATING and torch.is_autocast_enabled(first.device.type))
        else:
            allowed = _lowered(value) == dtype
        if not allowed:
            raise ArgumentTypeError(f"{name} has dtype {value.dtype} and {first_name} {first.dtype}: use one dtype")


def _lowered(value: Tensor) -> torch.dtype:
    """The dtype of a tensor when it reaches the kernels, after autocast if enabled."""
    device = value.device.type
    if value.dtype in FLOATING and value.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return value.dtype


def layer_input(name: str, value: Any, channels: int, weight: Any, *dimensions: int) -> None:
    """Check a layer's input: its channels, and that it has the dtype and device of a weight that multiplies it.

    Stand-ins for tensors, as in a torch.fx trace, are not checked, and neither are weights that are not tensors, as in
    quantized layers.
    """
    if has_torch_function((value,)):
        return
    tensor(name, value, *dimensions)
    if value.shape[-3] != channels:
        raise ShapeError(f"{name} must have {channels} channels, got shape {list(value.shape)}")
    if isinstance(weight, Tensor):
        same_device(**{name: value, "weight": weight})
        same_dtype(**{name: value, "weight": weight})


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def pair(name: str, value: int | tuple[int, int], least: int) -> None:
    values = (value, value) if isinstance(value, int) else value
    # Tuples of types, since the compiler of torch 2.6 does not support unions here.
    if (
        not isinstance(values, (tuple, list))
        or len(values) != 2
        or not all(isinstance(item, (int, torch.SymInt)) for item in values)
    ):
        raise ShapeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if any(item < least for item in values):
        raise ArgumentError(f"{name} must be at least {least}, got {value!r}")


def count(name: str, value: int) -> None:
    """Check that `value` is an int of at least 1."""
    if not hasattr(value, "__index__"):
        raise ArgumentTypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ArgumentError(f"{name} must be at least 1, got {value}")


def scale(name: str, value: float) -> None:
    """Check that `value` is a positive, finite number."""
    if not 0 < value < float("inf"):
        raise ArgumentError(f"{name} must be positive and finite, got {value}")


def as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
