"""The RoI poolings on the Triton kernels (kernels.py)."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant.ops import _gpu, _native
from pliant.ops.roi_pool.reference import Pooling, check_rois

_RULES = ("whole_cells", "authors_whole_cells", "authors_samples")  # in the order of kernels.py
_ELEMENTS = 512  # of a program, lines times channels
_WIDEST = 128
_WARPS = 4


class _Problem(NamedTuple):
    """What both kernels are told, and the tiles that they work in."""

    arguments: dict[str, Any]
    lines: int
    channels: int

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of lines, and of a class's channels."""
        return -(-self.arguments["lines"] // self.lines), -(-self.arguments["class_channels"] // self.channels)


def roi_pool(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> Tensor:
    if not (input.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        check_rois(rois.float(), input.shape[0])
    channels = input.shape[1] // (pooling.group_size[0] * pooling.group_size[1])
    out = input.new_empty(rois.shape[0], channels, *pooling.output_size)
    if out.numel():
        problem = _problem(input, rois, offset, pooling, out)
        _launch("forward", problem, {"out": out})
    return out


def roi_pool_backward(
    grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling
) -> tuple[Tensor, Tensor | None]:
    batch, channels, height, width = input.shape
    groups = pooling.group_size[0] * pooling.group_size[1]
    grad_table = input.new_zeros((batch, height, width, groups, channels // groups), dtype=torch.float32)
    grad_offset = None if offset is None else offset.new_zeros(offset.shape, dtype=torch.float32)
    if grad.numel():
        grad = grad.contiguous()
        problem = _problem(input, rois, offset, pooling, grad)
        arguments = {"grad": grad, "grad_table": grad_table, "grad_offset": grad_offset}
        _launch("backward", problem, arguments)
    grad_input = grad_table.permute(0, 4, 3, 1, 2).reshape(input.shape)
    narrow = None if grad_offset is None or offset is None else grad_offset.to(offset.dtype)
    return grad_input.to(input.dtype).contiguous(memory_format=_gpu.layout(input)), narrow


def _problem(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling, out: Tensor) -> _Problem:
    """Lay tensors out; `out` is the output or its gradient, contiguous."""
    batch, channels, height, width = input.shape
    (bins_y, bins_x), (groups_y, groups_x) = pooling.output_size, pooling.group_size
    channels //= groups_y * groups_x
    classes = 1 if offset is None else offset.shape[1] // 2
    table = input.reshape(batch, channels, groups_y * groups_x, height, width).permute(0, 3, 4, 2, 1).contiguous()
    parts_y, parts_x = (1, 1) if offset is None else offset.shape[2:]
    lines = rois.shape[0] * classes * bins_y * bins_x
    arguments = {
        "table": table,
        "rois": rois.float().contiguous(),
        "offset": None if offset is None else offset.contiguous(),
        "lines": lines,
        "images": batch,
        "height": height,
        "width": width,
        "bins_y": bins_y,
        "bins_x": bins_x,
        "groups_y": groups_y,
        "groups_x": groups_x,
        "parts_y": parts_y,
        "parts_x": parts_x,
        "samples": pooling.sample_per_part,
        "classes": classes,
        "class_channels": channels // classes,
        "edge_y": _edge(height, pooling.spatial_scale),
        "edge_x": _edge(width, pooling.spatial_scale),
        "scale": float(pooling.spatial_scale),
        "gamma": float(pooling.gamma),
        "OFFSET": offset is not None,
        "RULE": _RULES.index(pooling.rule),
        "INDEX": _gpu.index_type(table, out),
    }
    block = min(_WIDEST, 1 << (channels // classes - 1).bit_length())
    elements = _ELEMENTS // 4 if _native.interpreting() else _ELEMENTS
    return _Problem(arguments, max(1, elements // block), block)


def _edge(size: int, scale: float) -> float:
    """The last pixel, in float32, that the map reaches."""
    edge = torch.tensor(size / scale, dtype=torch.float32)
    if edge.double() * scale > size:
        edge = edge.nextafter(edge.new_tensor(0.0))
    return edge.item()


def _launch(name: str, problem: _Problem, arguments: dict[str, Any]) -> None:
    blocks = {"BLOCK_N": problem.lines, "BLOCK_C": problem.channels}
    everything = problem.arguments | arguments | blocks
    kernels = importlib.import_module("pliant.ops.roi_pool.kernels")
    # A fused multiply and add would move an edge by a cell.
    _gpu.launch(getattr(kernels, name), problem.grid, everything, num_warps=_WARPS, enable_fp_fusion=False)
