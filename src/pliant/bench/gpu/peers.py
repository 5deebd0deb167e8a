"""The implementations that are timed on a GPU: Pliant, torchvision, deformops, and cuDNN's plain convolution.

Each is called in its best layout. torchvision's operator takes contiguous maps, and offsets in the dtype of the maps,
so both are converted before the timing. deformops is called through its replacement of torchvision's function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant import ops
from pliant.bench.gpu.problems import DTYPES, Problem
from pliant.bench.gpu.steps import Absent
from pliant.bench.implementation import InTorch
from pliant.bench.rows import ConvRow, Tensors

PLIANT, TORCHVISION, DEFORMOPS, CUDNN = "Pliant", "torchvision", "deformops", "conv2d (cuDNN)"
TOLERANCE = {"bfloat16": 1.6e-2, "float16": 2e-3, "tf32": 4e-3, "float32": 2e-5}  # of the largest value
# Replays of torchvision's graphs take the time of its products alone.
NOT_CAPTURED = {TORCHVISION: "its kernels run on the default stream, which a graph does not hold"}
Maker = Callable[[Problem, Tensors], InTorch]


def pliant(problem: Problem, tensors: Tensors) -> InTorch:
    """Return Pliant's operator, with offsets in float32."""
    return _made(problem, partial(_deformable, ops.deform_conv2d, problem.row), tensors)


def torchvision(problem: Problem, tensors: Tensors) -> InTorch:
    """Return torchvision's operator, with contiguous maps and offsets in their dtype."""
    operator = importlib.import_module("torchvision").ops.deform_conv2d
    if tensors["input"].device.type == "cpu" and DTYPES[problem.dtype] != torch.float32:
        raise Absent("torchvision has no half precision on the CPU")
    laid_out = {name: value.to(DTYPES[problem.dtype]).contiguous() for name, value in tensors.items()}
    return _made(problem, partial(_deformable, operator, problem.row), laid_out)


def deformops(problem: Problem, tensors: Tensors) -> InTorch:
    """Return deformops' operator, with offsets in the dtype of the maps."""
    try:
        operator = importlib.import_module("deformops.integrations.torchvision").deform_conv2d
    except ImportError as error:
        raise Absent(f"deformops is not installed ({error})") from error
    given = dict(tensors) | {"offset": tensors["offset"].to(DTYPES[problem.dtype])}
    return _made(problem, partial(_deformable, operator, problem.row, pair=True), given)


def cudnn(problem: Problem, tensors: Tensors) -> InTorch:
    """Return the plain convolution of the same size."""
    row = problem.row

    def call(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.conv2d(input, weight, None, 1, row.padding, row.dilation, row.groups)

    made = _made(problem, call, tensors, ("input", "weight"))
    made.ignored = frozenset({"offset", "mask"})
    return made


EVERYWHERE: dict[str, Maker] = {CUDNN: cudnn, PLIANT: pliant, TORCHVISION: torchvision}
BESIDE_DEFORMOPS: dict[str, Maker] = {CUDNN: cudnn, PLIANT: pliant, DEFORMOPS: deformops}  # which tunes itself for long


def _made(
    problem: Problem,
    function: Callable[..., Tensor],
    tensors: Tensors,
    differentiated: tuple[str, ...] = ("input", "offset", "weight", "mask"),
) -> InTorch:
    names = [name for name in differentiated if name in tensors]
    made = InTorch(function, tensors, names, dtype=DTYPES[problem.dtype])
    made.tolerance = TOLERANCE[problem.dtype]
    return made


def _deformable(
    operator: Callable[..., Tensor],
    row: ConvRow,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    pair: bool = False,
) -> Tensor:
    padding, dilation = ((row.padding,) * 2, (row.dilation,) * 2) if pair else (row.padding, row.dilation)
    return operator(input, offset, weight, padding=padding, dilation=dilation, mask=mask)
