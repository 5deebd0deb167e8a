"""`torch.export` of networks with deformable layers, for any batch and image size."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pliant.ops._onnx import for_translation


def to_program(
    model: nn.Module, inputs: Tensor | tuple[Tensor, ...], *, fixed: bool = False, standard: bool = False
) -> torch.export.ExportedProgram:
    """Export a network with `torch.export`.

    Args:
        model: a network in evaluation mode that maps tensors to tensors. `pliant.models.BatchedDetector` turns a
            detector into one.
        inputs: example inputs, with a batch of at least two and sides large enough that no map has a single cell.
        fixed: whether the program accepts only these shapes. By default the first axis of every input is dynamic, and
            so are height and width of every `[N, C, H, W]`.
        standard: whether to decompose what other formats have no operator for: RoI pooling, and convolutions with the
            authors' border. `deform_conv2d` itself is kept, since ONNX has it.

    Returns:
        The exported program.

    Raises:
        ValueError: if the model is in training mode, or its `forward` does not take the inputs.
        TypeError: if an input is not a tensor.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=1)).eval()
        >>> program = pliant.export.to_program(model, torch.rand(2, 3, 16, 16))
        >>> program.module()(torch.rand(5, 3, 20, 30)).shape
        torch.Size([5, 8, 20, 30])
    """
    if model.training:
        raise ValueError("the network is in training mode: call eval() before the export")
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    named = _arguments(model, inputs)
    shapes = None if fixed else {name: _free(value) for name, value in named.items()}
    with torch.no_grad(), for_translation() if standard else contextlib.nullcontext():
        return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)


def _arguments(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The inputs by the names of forward's parameters. The inputs that `*args` takes are a tuple."""
    for index, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise TypeError(f"inputs[{index}] must be a Tensor, got {type(value).__name__}")
    signature = inspect.signature(model.forward)
    try:
        return dict(signature.bind(*inputs).arguments)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__}.forward{signature} cannot be called with {len(inputs)} positional tensors "
            f"({error}): pass one for each parameter, or wrap the model in a module that takes them by position"
        ) from None


def _free(example: Tensor | tuple[Tensor, ...]) -> Any:
    if isinstance(example, tuple):
        return tuple(map(_free, example))
    return dict.fromkeys((0, 2, 3) if example.dim() == 4 else (0,), torch.export.Dim.DYNAMIC)
