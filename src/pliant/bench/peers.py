"""Who takes part: the implementations of each kind of row, by the names of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from pliant import ops
from pliant.bench import machine
from pliant.bench.implementation import HALF_TOLERANCE, Implementation, InTorch, Missing
from pliant.bench.mxnet_peer import MXNet
from pliant.bench.rows import GAMMA, STRIDE, ConvRow, PoolRow, Tensors
from pliant.bench.runtimes import ONNXRuntime, OpenVINO
from pliant.ops import _native

PLAIN, PLIANT, PLIANT_BFLOAT16, REFERENCE = "conv2d", "Pliant", "Pliant bfloat16", "reference"
Column = Callable[[Any, Tensors, int], Implementation]
"""Makes the implementation of a row, of its tensors, for so many threads; raises Missing with the reason."""


def plain(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
    """torch's convolution: what a deformable one is measured by."""

    def call(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.conv2d(input, weight, None, 1, row.padding, row.dilation, row.groups)

    made = InTorch(call, tensors, ("input", "weight"))
    made.ignored = frozenset({"offset", "mask"})
    return made


def pliant(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
    return InTorch(partial(_call, ops.deform_conv2d, row), tensors, _leaves(tensors))


def torchvisions(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
    return InTorch(partial(_call, torchvision.ops.deform_conv2d, row), tensors, _leaves(tensors))


def in_bfloat16(column: Column) -> Column:
    """Another column under autocast."""

    def make(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
        if not machine.multiplies_bfloat16():
            raise Missing("this processor has no bfloat16 instructions")
        wide = column(row, tensors, threads)
        assert isinstance(wide, InTorch)

        def call(**arguments: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return wide.function(**arguments)

        made = InTorch(call, tensors, tuple(wide.leaves), dtype=torch.bfloat16)
        made.ignored, made.tolerance = wide.ignored, HALF_TOLERANCE
        return made

    return make


def variant(dtype: torch.dtype = torch.float32, masked: bool = False) -> Column:
    """Pliant on a row's tensors in another dtype, with the row's mask or without."""

    def make(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
        taken = {name: value.to(dtype) for name, value in tensors.items() if masked or name != "mask"}
        made = pliant(row, taken, threads)
        if not masked:
            made.ignored = frozenset({"mask"})
        if dtype != torch.float32:
            made.tolerance = HALF_TOLERANCE
        return made

    return make


def pooling(row: PoolRow, tensors: Tensors, threads: int) -> Implementation:
    """Pliant's pooling on the compiled kernels."""
    reason = _native.why_not()
    if reason:
        raise Missing(reason)
    return InTorch(partial(_pool, row), tensors, ("input", "offset"))


def reference_pooling(row: PoolRow, tensors: Tensors, threads: int) -> Implementation:
    """Pliant's pooling on its reference, in plain PyTorch."""
    context = partial(_native.use, _native.REFERENCE)
    return InTorch(partial(_pool, row), tensors, ("input", "offset"), context)


def _leaves(tensors: Tensors) -> list[str]:
    return [name for name in tensors if name != "grad"]


def _call(
    function: Callable[..., Tensor],
    row: ConvRow,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    return function(input, offset, weight, padding=row.padding, dilation=row.dilation, mask=mask)


def _pool(row: PoolRow, input: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
    function = ops.deform_ps_roi_pool if row.position_sensitive else ops.deform_roi_pool
    return function(input, rois, offset, row.bins, 1 / STRIDE, GAMMA, sampling=row.sampling)


CONVOLUTION: Mapping[str, Column] = {
    PLAIN: plain,
    PLIANT: pliant,
    "conv2d bfloat16": in_bfloat16(plain),
    PLIANT_BFLOAT16: in_bfloat16(pliant),
    "torchvision": torchvisions,
    "ONNX Runtime": ONNXRuntime,
    "OpenVINO": OpenVINO,
    "MXNet": MXNet,
}
VARIANTS: Mapping[str, Column] = {
    "float32 without a mask": variant(),
    "with a mask": variant(masked=True),
    "bfloat16": variant(torch.bfloat16),
    "float16": variant(torch.float16),
}
POOLING: Mapping[str, Column] = {REFERENCE: reference_pooling, PLIANT: pooling, "MXNet": MXNet}
