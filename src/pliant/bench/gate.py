"""What must hold before anything is timed: the results agree with the float64 reference.

The reference is computed for some lines of the output alone, spread over all of it: rows of the map for a
convolution, RoIs for a pooling. The implementation runs the whole problem; its output is compared on those lines,
and its gradients entirely, for a gradient of the output that is zero elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pliant.bench.implementation import Implementation
from pliant.bench.rows import GAMMA, STRIDE, ConvRow, PoolRow, Tensors
from pliant.ops.deform_conv2d import reference as convolution
from pliant.ops.roi_pool import reference as pooling

CELLS = 512  # output cells of a convolution that are compared, at least two rows
ROIS = 24


@dataclass(frozen=True)
class Expected:
    """float64 results of a row for `grad`, which is zero but at `lines` of the output's dimension `dim`."""

    dim: int
    lines: Tensor
    grad: Tensor
    output: Tensor
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """The largest difference from the reference, as a part of the reference's largest value, and where it is."""

    error: float
    where: str


def check(implementation: Implementation, expected: Expected) -> Verdict:
    """Compare an implementation's output and gradients with the reference."""
    got = {"output": implementation.forward().index_select(expected.dim, expected.lines)}
    want = {"output": expected.output}
    if implementation.trains:
        gradients = implementation.gradients(expected.grad)
        got |= {f"grad_{name}": value for name, value in gradients.items()}
        want |= {f"grad_{name}": expected.gradients[name] for name in gradients}
    verdicts = [Verdict(difference(got[name], want[name]), name) for name in want]
    return max(verdicts, key=lambda verdict: verdict.error)


def difference(got: Tensor, want: Tensor) -> float:
    """The largest difference as a part of the largest value wanted; infinite where it is no number."""
    if got.shape != want.shape:
        return math.inf
    largest = (got.detach().double() - want).abs().max()
    error = float(largest / want.abs().max()) if largest else 0.0
    return math.inf if math.isnan(error) else error


def expected(
    row: ConvRow | PoolRow, tensors: Tensors, border: str = "paper", ignored: Collection[str] = ()
) -> Expected:
    """The reference's results for a row.

    Args:
        border: a convolution's border rule.
        ignored: a convolution's tensors that do not count: without `offset` samples stay in place.
    """
    if isinstance(row, PoolRow):
        return _pooling(row, tensors)
    return _convolution(row, tensors, border, ignored)


def _convolution(row: ConvRow, tensors: Tensors, border: str, ignored: Collection[str]) -> Expected:
    lines = _spread(row.height, max(2, CELLS // (row.width * row.batch)), tensors["grad"].device)
    input, offset, weight = (tensors[name].double() for name in ("input", "offset", "weight"))
    # The reference takes the chosen rows for the first ones of the map: what it is short goes to the offsets.
    some = (torch.zeros_like(offset) if "offset" in ignored else offset)[:, :, lines].clone()
    some[:, 0::2] += (lines - torch.arange(len(lines), device=lines.device)).view(-1, 1)
    geometry = convolution.Geometry((1, 1), (row.padding,) * 2, (row.dilation,) * 2, border)
    some_grad = tensors["grad"][:, :, lines].double()
    mask = tensors["mask"].double() if "mask" in tensors and "mask" not in ignored else None
    some_mask = None if mask is None else mask[:, :, lines]
    grad_input, grad_some, grad_weight, grad_mask = convolution.deform_conv2d_backward(
        some_grad, input, some, weight, some_mask, geometry
    )
    grad_masks = {}
    if mask is not None and grad_mask is not None:
        grad_masks["mask"] = torch.zeros_like(mask).index_copy(2, lines, grad_mask)
    return Expected(
        2,
        lines,
        _only(tensors["grad"], 2, lines),
        convolution.deform_conv2d(input, some, weight, None, some_mask, geometry),
        {
            "input": grad_input,
            "offset": torch.zeros_like(offset).index_copy(2, lines, grad_some),
            "weight": grad_weight,
            **grad_masks,
        },
    )


def _pooling(row: PoolRow, tensors: Tensors) -> Expected:
    lines = _spread(row.rois, ROIS, tensors["grad"].device)
    input, rois, offset, grad = (tensors[name].double() for name in ("input", "rois", "offset", "grad"))
    rule = "whole_cells" if row.sampling == "paper" else "authors_samples"
    options = pooling.Pooling((row.bins,) * 2, (row.group_size,) * 2, 1 / STRIDE, GAMMA, rule, 4)
    arguments = input, rois[lines], offset[lines], options
    grad_input, grad_some = pooling.roi_pool_backward(grad[lines], *arguments)
    assert grad_some is not None
    return Expected(
        0,
        lines,
        _only(tensors["grad"], 0, lines),
        pooling.roi_pool(*arguments),
        {"input": grad_input, "offset": torch.zeros_like(offset).index_copy(0, lines, grad_some)},
    )


def _spread(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` of `length` lines, the first and the last among them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().to(device)


def _only(grad: Tensor, dim: int, lines: Tensor) -> Tensor:
    return torch.zeros_like(grad).index_copy(dim, lines, grad.index_select(dim, lines))
