"""How evenly the compiled kernels share out their work, by the task lists that run."""

from __future__ import annotations

import heapq
from typing import Any

import pytest

from pliant.bench.rows import CONVOLUTIONS, ConvRow
from pliant.ops import _native
from pliant.ops.deform_conv2d import cpu
from pliant.ops.deform_conv2d.reference import Geometry

THREADS = (8, 16, 32, 64)
MOST = 1.15  # of the mean
FEW = 1 << 30  # multiplications of a forward pass


def rows() -> list[Any]:
    """The convolutions of the benchmark, those that take long as slow tests."""

    def work(row: ConvRow) -> int:
        return row.batch * row.height * row.width * row.out_channels * row.channels // row.groups * row.kernel**2

    def marks(row: ConvRow) -> list[Any]:
        if row.kernel == 7:  # a span of its positions touches few rows, in which few threads scatter
            return [pytest.mark.xfail(raises=AssertionError, strict=True, reason="1.22 of the mean on 8 threads")]
        return [pytest.mark.slow] if work(row) > FEW else []

    return [pytest.param(row, id=row.name, marks=marks(row)) for row in CONVOLUTIONS if type(row) is ConvRow]


def busiest(loops: list[list[float]], threads: int) -> float:
    """The work of the busiest thread as a multiple of the mean.

    A thread that has finished its task takes the next one. All wait for each other after each loop.
    """
    longest = 0.0
    for costs in loops:
        loads = [0.0] * threads
        for cost in costs:
            heapq.heapreplace(loads, loads[0] + cost)
        longest += max(loads)
    return longest * threads / sum(map(sum, loops))


def test_threads_wait_after_each_loop() -> None:
    assert busiest([[1.0] * 8], 8) == 1
    assert busiest([[1.0] * 9], 8) == pytest.approx(2 * 8 / 9)
    assert busiest([[1.0, 1.0], [2.0]], 2) == pytest.approx(3 * 2 / 4)


@pytest.mark.parametrize("row", rows())
def test_no_thread_has_much_more_work_than_the_mean(
    row: ConvRow, kernels: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kernels != _native.available()[0] or kernels == _native.REFERENCE:
        pytest.skip("the best instruction set has the widest blocks")
    tensors = row.tensors()
    input, offset, weight, grad = (tensors[name] for name in ("input", "offset", "weight", "grad"))
    geometry = Geometry((1, 1), (row.padding,) * 2, (row.dilation,) * 2, "paper")

    def forward() -> None:
        cpu.deform_conv2d(input, offset, weight, None, None, geometry)

    def backward() -> None:
        cpu.deform_conv2d_backward(grad, input, offset, weight, None, geometry)

    one_thread = grad.numel() * weight[0].numel() < _native._SMALL
    for threads in THREADS:
        used = 1 if one_thread else threads  # small work runs on one
        monkeypatch.setattr(_native, "threads", lambda work, used=used: used)
        shares = [busiest(_native.kernels.task_costs(call), used) for call in (forward, backward)]
        with capsys.disabled():
            print(f"\n{row.name}, {threads} threads: forward {shares[0]:.2f}, backward {shares[1]:.2f}", end=" ")
        assert max(shares) <= MOST
