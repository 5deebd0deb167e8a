"""The operators as standard ones while a model is captured for another format, by torch.onnx.export or `to_program`.

Decomposing operators during capture avoids a pass over the captured program, which would take seconds for a detector.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.ops import bilinear
from pliant.ops.deform_conv2d import reference
from pliant.ops.deform_conv2d.reference import Geometry

OPSET = 19  # the first that has DeformConv


_for_translation = False


@contextlib.contextmanager
def for_translation() -> Iterator[None]:
    """Decompose, in what torch.export captures here, the operators that `to_onnx` does not translate."""
    global _for_translation
    before, _for_translation = _for_translation, True
    try:
        yield
    finally:
        _for_translation = before


def exporting() -> bool:
    """Whether a model is being captured for another format."""
    capturing = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return capturing and (_for_translation or torch.onnx.is_in_onnx_export())


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *geometry: Any
) -> Tensor:
    stride, padding, dilation, border = geometry
    if border == "paper" and _for_translation:
        return torch.ops.pliant.deform_conv2d(input, offset, weight, bias, mask, *geometry)
    if border == "paper" and torch.jit.is_tracing():
        _register_symbolic()
        return torch.ops.pliant.deform_conv2d(input, offset, weight, bias, mask, *geometry)
    if border == "paper" and hasattr(torch.onnx, "ops"):
        return torch.onnx.ops.symbolic(
            "DeformConv",
            (input, weight, offset, bias, mask),
            attributes(input.shape, offset.shape, weight.shape, stride, padding, dilation),
            dtype=input.dtype,
            shape=(input.shape[0], weight.shape[0], *offset.shape[2:]),
            version=OPSET,
        )
    rule = Geometry(tuple(stride), tuple(padding), tuple(dilation), border)
    return reference.deform_conv2d(input, offset, weight, bias, mask, rule, bilinear.gathered_rows)


def attributes(
    input: Sequence[int],
    offset: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> dict[str, Any]:
    """The attributes of ONNX's DeformConv, from the shapes of its inputs."""
    kernel = [int(size) for size in weight[2:]]
    return {
        "dilations": list(dilation),
        "group": int(input[1]) // int(weight[1]),
        "kernel_shape": kernel,
        "offset_group": int(offset[1]) // (2 * kernel[0] * kernel[1]),
        "pads": [*padding, *padding],
        "strides": list(stride),
    }


@functools.cache
def _register_symbolic() -> None:
    """Register the operator with the exporter of torch.jit.trace (dynamo=False)."""
    helper = torch.onnx.symbolic_helper

    @helper.parse_args("v", "v", "v", "v", "v", "is", "is", "is", "s")  # type: ignore[untyped-decorator]
    def symbolic(  # type: ignore[no-untyped-def]
        g, input, offset, weight, bias, mask, stride, padding, dilation, border
    ):
        shapes = (helper._get_tensor_sizes(value) for value in (input, offset, weight))
        named = {f"{name}_i": value for name, value in attributes(*shapes, stride, padding, dilation).items()}
        nothing = g.op("prim::Constant")
        nothing.setType(torch._C.OptionalType.ofTensor())
        optional = [nothing if helper._is_none(value) else value for value in (bias, mask)]
        return g.op("DeformConv", input, weight, offset, *optional, **named)

    torch.onnx.register_custom_op_symbolic("pliant::deform_conv2d", symbolic, OPSET)
