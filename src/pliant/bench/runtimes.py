"""Inference runtimes that have deformable convolution: ONNX Runtime and OpenVINO. Their weights are constants of
the model, which they may lay out beforehand."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from pliant.bench.implementation import Implementation, Missing
from pliant.bench.rows import ConvRow, Tensors

_OPSET = 19  # the first with DeformConv


class ONNXRuntime(Implementation):
    """DeformConv of a model with this one node."""

    def __init__(self, row: ConvRow, tensors: Tensors, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise Missing(f"onnxruntime is not installed ({error})") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Else its threads spin on after a call, and take the cores from whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.inputs = {name: _array(tensors[name]) for name in _given(tensors)}
        model = _onnx_model(row, _array(tensors["weight"]), "mask" in tensors)
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self.forward()
        except Exception as error:  # onnxruntime's errors have no common class
            raise Missing(f"onnxruntime cannot run DeformConv: {_first_line(error)}") from error

    def forward(self) -> Tensor:
        (output,) = self.session.run(None, self.inputs)
        return torch.from_numpy(output)

    def _call(self, training: bool) -> None:
        self.session.run(None, self.inputs)


class OpenVINO(Implementation):
    """DeformableConvolution-8 in float32, whatever the processor would prefer."""

    def __init__(self, row: ConvRow, tensors: Tensors, threads: int) -> None:
        try:
            import openvino
            from openvino import opset8
        except ImportError as error:
            raise Missing(f"openvino is not installed ({error})") from error
        given = _given(tensors)
        parameters = [opset8.parameter(list(tensors[name].shape), numpy.float32, name) for name in given]
        pair = [row.padding] * 2
        node = opset8.deformable_convolution(
            *parameters[:2],
            opset8.constant(_array(tensors["weight"])),
            [1, 1],
            pair,
            pair,
            [row.dilation] * 2,
            *parameters[2:],
            group=row.groups,
            deformable_group=row.offset_groups,
            bilinear_interpolation_pad=True,
        )
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            model = openvino.Model([node], parameters)
            self.request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
            self.inputs = [_array(tensors[name]) for name in given]  # which the request refers to
            for index, array in enumerate(self.inputs):
                self.request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
            self.forward()
        except Exception as error:  # openvino raises RuntimeError and its own
            raise Missing(f"openvino cannot run DeformableConvolution: {_first_line(error)}") from error

    def forward(self) -> Tensor:
        self.request.infer()
        return torch.from_numpy(self.request.get_output_tensor().data.copy())

    def _call(self, training: bool) -> None:
        self.request.infer()


def _given(tensors: Tensors) -> list[str]:
    """The names of what goes in at every call."""
    return [name for name in ("input", "offset", "mask") if name in tensors]


def _array(tensor: Tensor) -> numpy.ndarray:
    """In the one layout that the runtimes have."""
    return tensor.contiguous().numpy()


def _onnx_model(row: ConvRow, weight: numpy.ndarray, masked: bool) -> bytes:
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise Missing(f"onnx is not installed ({error})") from error
    size = [row.height, row.width]
    shapes = {
        "input": [row.batch, row.channels, *size],
        "offset": [row.batch, 2 * row.offset_groups * row.kernel**2, *size],
        "mask": [row.batch, row.offset_groups * row.kernel**2, *size],
        "output": [row.batch, row.out_channels, *size],
    }
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    node = helper.make_node(
        "DeformConv",
        ["input", "weight", "offset", *(["", "mask"] if masked else [])],
        ["output"],
        kernel_shape=[row.kernel] * 2,
        pads=[row.padding] * 4,
        dilations=[row.dilation] * 2,
        group=row.groups,
        offset_group=row.offset_groups,
    )
    graph = helper.make_graph(
        [node],
        "deformable_convolution",
        [values[name] for name in ("input", "offset", *(["mask"] if masked else []))],
        [values["output"]],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
