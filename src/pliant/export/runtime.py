"""ONNX files as modules, run by ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RUNTIMES = ("onnxruntime", "openvino")


class OnnxModule(nn.Module):
    """An ONNX file as a module that maps tensors to tensors. It runs on the CPU and has no gradients.

    Args:
        path: the ONNX file.
        runtime: `"onnxruntime"` or `"openvino"`. Either uses as many threads as `torch.get_num_threads()` returns when
            the file is opened.

    Attributes:
        metadata: the metadata that `to_onnx` stored in the file.

    Raises:
        ImportError: if the runtime is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if the runtime is unknown or cannot run the file.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=1)).eval()
        >>> pliant.export.to_onnx(model, torch.rand(2, 3, 16, 16), "model.onnx")
        >>> pliant.export.OnnxModule("model.onnx")(torch.rand(5, 3, 20, 30)).shape
        torch.Size([5, 8, 20, 30])
    """

    metadata: dict[str, str]

    def __init__(self, path: str | Path, runtime: str = "onnxruntime") -> None:
        super().__init__()
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime must be one of {', '.join(map(repr, RUNTIMES))}, got {runtime!r}")
        if not Path(path).is_file():
            raise FileNotFoundError(f"no ONNX file at {path}")
        opened = _open_onnxruntime if runtime == "onnxruntime" else _open_openvino
        try:
            self._run, self.metadata = opened(str(path))
        except ImportError as error:
            raise ImportError(f"{error}; to run ONNX files, pip install {runtime}") from error
        except Exception as error:  # each runtime raises errors of its own
            raise ValueError(f"{runtime} cannot run {path}: {error}") from error

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self._run([tensor.detach().cpu().numpy() for tensor in inputs])
        found = tuple(torch.from_numpy(output).to(inputs[0].device) for output in outputs)
        return found[0] if len(found) == 1 else found


def _open_onnxruntime(path: str) -> tuple[Callable[[list[Any]], list[Any]], dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(arrays: list[Any]) -> list[Any]:
        return list(session.run(None, dict(zip(names, arrays, strict=True))))

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _open_openvino(path: str) -> tuple[Callable[[list[Any]], list[Any]], dict[str, str]]:
    import openvino

    core = openvino.Core()
    core.add_extension(openvino.frontend.ConversionExtension("DeformConv", _deformable_convolution))
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model = core.read_model(path)
    compiled = core.compile_model(model, "CPU", threads)

    def run(arrays: list[Any]) -> list[Any]:
        found = compiled(arrays)
        return [found[output].copy() for output in compiled.outputs]

    info = model.get_rt_info(["framework"]).astype(dict) if model.has_rt_info("framework") else {}
    return run, {key: value.astype(str) for key, value in info.items()}


def _deformable_convolution(node: Any) -> list[Any]:
    """ONNX's DeformConv as OpenVINO's operator, for OpenVINO's ONNX frontend, which does not know it."""
    from openvino import opset8

    def pair(name: str) -> list[int]:
        return list(node.get_attribute(name, [1, 1]))

    inputs = [node.get_input(index) for index in range(node.get_input_size())]
    input, weight, offset = inputs[:3]
    bias, mask = (_given(inputs, index) for index in (3, 4))
    pads = list(node.get_attribute("pads", [0] * 4))
    geometry = pair("strides"), pads[:2], pads[2:], pair("dilations")
    modulation = [] if mask is None else [mask]
    groups = {"group": node.get_attribute("group", 1), "deformable_group": node.get_attribute("offset_group", 1)}
    out = opset8.deformable_convolution(
        input, offset, weight, *geometry, *modulation, **groups, bilinear_interpolation_pad=True
    )
    if bias is not None:
        out = opset8.add(out, opset8.reshape(bias, opset8.constant([1, -1, 1, 1]), special_zero=False))
    return [out.output(0)]


def _given(inputs: list[Any], index: int) -> Any:
    """An optional input, or None if it is missing."""
    if index >= len(inputs) or inputs[index].get_node().get_type_name() == "NullNode":
        return None
    return inputs[index]
