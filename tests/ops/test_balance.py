"""How evenly the compiled kernels share out their work, by the task lists that run."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.bench.rows import CONVOLUTIONS, GAMMA, POOLINGS, STRIDE, ConvRow, PoolRow
from pliant.ops import _native
from pliant.ops.deform_conv2d import cpu as conv2d
from pliant.ops.deform_conv2d.reference import Geometry
from pliant.ops.ms_deform_attn import cpu as attention
from pliant.ops.roi_pool import cpu as roi_pool
from pliant.ops.roi_pool.reference import Pooling

THREADS = (8, 16, 32, 64)
MOST = 1.15  # of the mean
FEW = 1 << 30  # multiplications of a forward pass
Calls = tuple[Callable[[], Any], Callable[[], Any]]
"""Forward, and backward."""


def cases() -> list[Any]:
    """The convolutions of the benchmark on each number of threads, those that take long as slow tests."""

    def work(row: ConvRow) -> int:
        return row.batch * row.height * row.width * row.out_channels * row.channels // row.groups * row.kernel**2

    def marks(row: ConvRow, threads: int) -> list[Any]:
        if row.kernel == 7 and threads == 64:  # its span has fewer than 64 rows, and its weight 60 blocks of 16 lanes
            wide = _native.available()[0].startswith(("avx512", "amx"))
            return [pytest.mark.xfail(wide, raises=AssertionError, strict=True, reason="1.18 of the mean")]
        return [pytest.mark.slow] if work(row) > FEW else []

    return [
        pytest.param(row, threads, id=f"{row.name}, {threads} threads", marks=marks(row, threads))
        for row in CONVOLUTIONS
        if type(row) is ConvRow
        for threads in (2, *THREADS)
    ]


on_the_widest_vectors = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(
            _native.available()[0],
            marks=pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed"),
        )
    ],
    indirect=True,
)
"""On the best instruction set alone: its blocks are the largest."""


Loop = tuple[bool, list[float]]
"""Whether its threads have ranges of tasks, and the costs of these."""


def loads(loop: Loop, threads: int) -> list[float]:
    """The work of the threads, the least first.

    One that has finished its task takes the next one, of its own range while there are any.
    """
    in_ranges, costs = loop
    shares = min(threads, len(costs)) if in_ranges else 1
    ranges = [deque(costs[len(costs) * i // shares : len(costs) * (i + 1) // shares]) for i in range(shares)]
    found = [(0.0, thread) for thread in range(threads)]
    for _ in costs:
        load, thread = found[0]
        task = next(each for i in range(shares) if (each := ranges[(thread + i) % shares])).popleft()
        heapq.heapreplace(found, (load + task, thread))
    return sorted(load for load, _ in found)


def busiest(loops: list[Loop], threads: int) -> float:
    """The work of the busiest thread as a multiple of the mean. All wait for each other after each loop."""
    return sum(max(loads(loop, threads)) for loop in loops) * threads / sum(sum(costs) for _, costs in loops)


def pooling_calls(row: PoolRow) -> Calls:
    """Deformable RoI pooling of a row of the benchmark."""
    tensors = row.tensors()
    input, rois, offset, grad = (tensors[name] for name in ("input", "rois", "offset", "grad"))
    rule = "whole_cells" if row.sampling == "paper" else "authors_samples"
    pooling = Pooling((row.bins,) * 2, (row.group_size,) * 2, 1 / STRIDE, GAMMA, rule, 4)
    return (
        lambda: roi_pool.roi_pool(input, rois, offset, pooling),
        lambda: roi_pool.roi_pool_backward(grad, input, rois, offset, pooling),
    )


def attention_calls(queries: int, channels: int, second: int = 216) -> Calls:
    """Attention of 8 heads to 4 points in each of 2 maps; the second begins in this row, the first ends at 216."""
    maps = [(12, 18, 0), (6, 9, second)]
    value, grad = torch.randn(1, 270, 8, channels), torch.randn(1, queries, 8 * channels)
    locations, weights = torch.rand(1, queries, 8, 2, 4, 2), torch.rand(1, queries, 8, 2, 4)
    return (
        lambda: attention.ms_deform_attn(value, maps, locations, weights),
        lambda: attention.ms_deform_attn_backward(grad, value, maps, locations, weights),
    )


def use_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(_native, "threads", lambda work: threads)


def shares(calls: Calls, threads: int, name: str, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """The busiest thread's, forward and backward, which are printed."""
    found = [busiest(_native.kernels.task_costs(call), threads) for call in calls]
    with capsys.disabled():
        print(f"\n{name}, {threads} threads: forward {found[0]:.2f}, backward {found[1]:.2f}", end=" ")
    return found


def test_threads_wait_after_each_loop() -> None:
    for in_ranges in (False, True):
        assert busiest([(in_ranges, [1.0] * 8)], 8) == 1
        assert busiest([(in_ranges, [1.0] * 9)], 8) == pytest.approx(2 * 8 / 9)
        assert busiest([(in_ranges, [1.0, 1.0]), (in_ranges, [2.0])], 2) == pytest.approx(3 * 2 / 4)


def test_threads_with_ranges_help_each_other() -> None:
    costs = [4.0, 4.0, 1.0, 1.0]
    assert loads((False, costs), 2) == [5.0, 5.0]
    assert loads((True, costs), 2) == [4.0, 6.0]


@on_the_widest_vectors
@pytest.mark.parametrize(("row", "threads"), cases())
def test_no_thread_has_much_more_work_than_the_mean(
    row: ConvRow, threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = row.tensors()
    input, offset, weight, grad = (tensors[name] for name in ("input", "offset", "weight", "grad"))
    geometry = Geometry((1, 1), (row.padding,) * 2, (row.dilation,) * 2, "paper")

    def forward() -> None:
        conv2d.deform_conv2d(input, offset, weight, None, None, geometry)

    def backward() -> None:
        conv2d.deform_conv2d_backward(grad, input, offset, weight, None, geometry)

    used = 1 if grad.numel() * weight[0].numel() < _native._SMALL else threads  # small work runs on one
    use_threads(monkeypatch, used)
    assert max(shares((forward, backward), used, row.name, capsys)) <= MOST


@on_the_widest_vectors
@pytest.mark.parametrize("row", POOLINGS, ids=lambda row: row.name)
def test_rois_keep_all_threads_busy(
    row: PoolRow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = pooling_calls(row)
    for threads in THREADS:
        use_threads(monkeypatch, threads)
        assert max(shares(calls, threads, row.name, capsys)) <= MOST


@on_the_widest_vectors
@pytest.mark.parametrize("threads", THREADS)
def test_attention_keeps_all_threads_busy(
    threads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Backward only up to its number of heads and levels, which are its tasks."""
    use_threads(monkeypatch, threads)
    forward, backward = shares(attention_calls(1536, 8), threads, "ms_deform_attn", capsys)
    assert forward <= MOST
    assert backward <= MOST * max(1, threads / (8 * 2))


@pytest.mark.parametrize(
    "calls",
    [
        *(pooling_calls(replace(row, rois=12, bins=4)) for row in POOLINGS),
        pooling_calls(PoolRow(70, position_sensitive=False, offset_classes=2, sampling="paper", rois=9, height=45)),
        attention_calls(50, 12),
        attention_calls(50, 12, second=100),
    ],
    ids=[
        "planes, paper",
        "planes, authors",
        "strips, paper",
        "strips, authors",
        "two classes",
        "attention",
        "maps that share rows",
    ],
)
def test_results_have_the_same_bits_for_any_number_of_threads(
    calls: Calls, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == _native.REFERENCE:
        pytest.skip("its threads are torch's")

    def results(threads: int) -> list[Tensor]:
        use_threads(monkeypatch, threads)
        forward, backward = (call() for call in calls)
        return [forward, *backward]

    one = results(1)
    for threads in (2, *THREADS):
        assert all(torch.equal(a, b) for a, b in zip(one, results(threads), strict=True)), threads
