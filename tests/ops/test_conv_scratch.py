"""How much memory the compiled convolution takes beyond its tensors, as the system counts it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pliant.bench.rows import CONVOLUTIONS, ConvRow
from pliant.ops import _native
from pliant.ops.deform_conv2d import cpu
from pliant.ops.deform_conv2d.reference import Geometry

MIB = 1 << 20
MOST = 32 * MIB  # for two threads
MORE = 2 * MIB  # for each further one
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def taken(call: Callable[[], tuple[Tensor | None, ...]]) -> int:
    """The bytes by which a call raises the resident memory, without its results."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not at hand
    PEAK.write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    results = call()
    return resident("VmHWM") - before - sum(result.nbytes for result in results if result is not None)


def test_a_tensor_that_a_call_drops_is_counted() -> None:
    if sys.platform != "linux":
        pytest.skip("memory is counted as Linux counts it")
    assert 0.9 * 40 * MIB < taken(lambda: (torch.ones(10 * MIB)[:1].clone(),)) < 1.1 * 40 * MIB


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("row", [CONVOLUTIONS[i] for i in (0, 2, 7, 11)], ids=lambda row: row.name)
def test_scratch_is_bounded(row: ConvRow, threads: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("memory is counted as Linux counts it")
    if kernels != _native.available()[0] or kernels == _native.REFERENCE:
        pytest.skip("the best instruction set has the widest blocks")
    tensors = row.tensors()
    input, offset, weight, grad = (tensors[name] for name in ("input", "offset", "weight", "grad"))
    geometry = Geometry((1, 1), (row.padding,) * 2, (row.dilation,) * 2, "paper")
    monkeypatch.setattr(_native, "threads", lambda work: threads)
    bytes_taken = [
        taken(lambda: (cpu.deform_conv2d(input, offset, weight, None, None, geometry),)),
        taken(lambda: cpu.deform_conv2d_backward(grad, input, offset, weight, None, geometry)),
    ]
    assert max(bytes_taken) <= MOST + (threads - 2) * MORE
