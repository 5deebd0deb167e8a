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
    """Export a network.

    Args:
        model: in evaluation mode; it takes tensors and gives tensors. `pliant.models.BatchedDetector` makes such a
            network of a detector.
        inputs: examples, at least two of a batch, with no side so small that a map has one cell.
        fixed: whether the program takes tensors of these shapes alone. Otherwise the first axis of every input may
            have any length, and so may height and width of every `[N, C, H, W]`.
        standard: whether to take apart what other formats have no operator for: RoI pooling, and convolution with
            the authors' border. `deform_conv2d` itself stays whole: ONNX has it.

    Raises:
        ValueError: if the model is in training mode, or its forward does not take these inputs.
        TypeError: if an input is no tensor.
    """
    if model.training:
        raise ValueError("a network in training mode is not what should be exported: call eval() on it first")
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    named = _arguments(model, inputs)
    shapes = None if fixed else {name: _free(value) for name, value in named.items()}
    with torch.no_grad(), for_translation() if standard else contextlib.nullcontext():
        return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)


def _arguments(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The inputs by the names of forward's parameters; all that `*args` takes is a tuple."""
    for index, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise TypeError(f"inputs[{index}] must be a Tensor, got {type(value).__name__}")
    signature = inspect.signature(model.forward)
    try:
        return dict(signature.bind(*inputs).arguments)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__}.forward{signature} cannot be called with {len(inputs)} positional tensors "
            f"({error}): pass one for each parameter, or wrap the model in one that takes them by position"
        ) from None


def _free(example: Tensor | tuple[Tensor, ...]) -> Any:
    if isinstance(example, tuple):
        return tuple(map(_free, example))
    return dict.fromkeys((0, 2, 3) if example.dim() == 4 else (0,), torch.export.Dim.DYNAMIC)
