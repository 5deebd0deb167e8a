"""Export networks with deformable layers as ONNX files of standard operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision  # noqa: F401  (registers its operators)
from torch import Tensor, nn

from pliant.export.program import to_program
from pliant.ops._onnx import attributes

OPSETS = (19, 22)
_EVERY = (1 << 31) - 1  # no limit on the boxes of a class; OpenVINO counts in 32 bits


def to_onnx(
    model: nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    path: str | Path,
    *,
    opset: int = 19,
    fixed: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Export a network as an ONNX file.

    Deformable convolutions of Pliant and torchvision become ONNX's `DeformConv`. RoI pooling has no ONNX operator and
    becomes a sequence of standard operators with the same results.

    Args:
        model, inputs, fixed: see `to_program`.
        path: file to write. An existing file is replaced only after the new one is complete.
        opset: 19 or 22.
        input_names, output_names: names of the inputs and outputs in the file.
        metadata: text to store in the file, by key.

    Raises:
        ImportError: if `onnx` or `onnxscript` is not installed.
        ValueError: if the opset is unsupported, the model is in training mode, or its `forward` does not take the
            inputs.
        TypeError: if an input is not a tensor.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=1)).eval()
        >>> image = torch.rand(2, 3, 16, 16)
        >>> pliant.export.to_onnx(model, image, "model.onnx", metadata={"made by": "me"})
        >>> served = pliant.export.OnnxModule("model.onnx")
        >>> torch.allclose(served(image), model(image), atol=1e-4)
        True
    """
    if opset not in OPSETS:
        raise ValueError(
            f"opset must be one of {', '.join(map(str, OPSETS))} (DeformConv was added in 19), got {opset}"
        )
    onnx, translations = _libraries()
    program = to_program(model, inputs, fixed=fixed, standard=True)
    exported = torch.onnx.export(
        program,
        opset_version=opset,
        custom_translation_table=translations,
        input_names=input_names,
        output_names=output_names,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    _name_axes(proto)
    onnx.checker.check_model(proto, full_check=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        onnx.save(proto, whole)
        whole.replace(path)


def _libraries() -> tuple[Any, dict[Any, Callable[..., Any]]]:
    """The `onnx` package, and the translations of operators that torch's exporter does not know."""
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ImportError(f'{error}; to write ONNX files, pip install "pliant[export]"') from error

    of_18: Any = onnxscript.opset18
    of_19: Any = onnxscript.opset19

    def deform_conv2d(  # type: ignore[no-untyped-def]
        input, offset, weight, bias, mask, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        border: str,
    ):  # fmt: skip
        named = attributes(input.shape, offset.shape, weight.shape, stride, padding, dilation)
        return of_19.DeformConv(input, weight, offset, bias, mask, **named)

    def of_torchvision(  # type: ignore[no-untyped-def]
        input, weight, offset, mask, bias, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
        dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
    ):  # fmt: skip
        geometry = [stride_h, stride_w], [pad_h, pad_w], [dilation_h, dilation_w]
        return deform_conv2d(input, offset, weight, bias, mask if use_mask else None, *geometry, "paper")

    def batched_nms(boxes, scores, iou_threshold: float, score_threshold: float):  # type: ignore[no-untyped-def]
        every = of_18.Constant(value_int=_EVERY)
        limits = (of_18.Constant(value_float=value) for value in (iou_threshold, score_threshold))
        return of_18.NonMaxSuppression(boxes, scores, every, *limits)

    return onnx, {
        torch.ops.pliant.deform_conv2d.default: deform_conv2d,
        torch.ops.torchvision.deform_conv2d.default: of_torchvision,
        torch.ops.pliant.batched_nms.default: batched_nms,
    }


def _name_axes(proto: Any) -> None:
    """Name the dynamic axes of the inputs, also in lengths that are computed from them."""
    names: dict[str, str] = {}
    for value in proto.graph.input:
        axes = value.type.tensor_type.shape.dim
        called = ("batch", "channels", "height", "width") if len(axes) == 4 else ("batch",)
        for axis, name in zip(axes, called, strict=False):
            if axis.dim_param and axis.dim_param not in names:
                taken = sum(given.rstrip("0123456789") == name for given in names.values())
                names[axis.dim_param] = name if not taken else f"{name}{taken + 1}"
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = pattern.sub(lambda match: names[match[0]], axis.dim_param)
