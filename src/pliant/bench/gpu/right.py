"""Steps that check the operators against float64: in every dtype, on another stream, in CUDA graphs, deterministic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pliant.bench.gpu import calls, warm
from pliant.bench.gpu.calls import TOLERANCE, Call
from pliant.bench.gpu.problems import DTYPES, multiplying
from pliant.bench.gpu.steps import Absent, Place, Results, Step
from pliant.bench.rows import ConvRow

_POISON = 1 << 26  # elements that hold NaN before a call, whose memory the results are likely to get


def steps(place: Place) -> Iterator[Step]:
    """Yield the checks that run in this process, the broadest first."""
    yield Step("right", "right: seldom geometries and offsets", 75, _seldom)
    yield Step("right", "right: another stream", 3, _stream)
    yield Step("right", "right: a replayed CUDA graph", 5, _replay)
    yield Step("right", "right: deterministic", 3, _deterministic)
    for row in calls.rows(place):
        yield Step("right", f"right: {row.name}", 6, partial(_row, row))
    yield Step("right", "right: RoI pooling", 12, _poolings)
    yield Step("right", "right: multi-scale attention", 6, _attention)


def _seldom(place: Place) -> Results:
    every = calls.seldom(place)
    yield from _all_compared(place, every, [("bfloat16", "contiguous")])
    if not place.tiny:
        yield from _all_compared(place, every, [("float32", "contiguous")])
        kinds = [("float16", "channels last"), ("tf32", "channels last"), ("bfloat16", "channels last")]
        yield from _all_compared(place, [every[0], every[3], every[-1]], kinds)


def _row(row: ConvRow, place: Place) -> Results:
    kinds = [(dtype, "channels last") for dtype in (["float32"] if place.tiny else DTYPES)]
    yield from _all_compared(
        place, [calls.convolution(row.name, row, place.device)], [*kinds, ("bfloat16", "contiguous")]
    )


def _all_compared(place: Place, every: list[Call], kinds: list[tuple[str, str]]) -> Results:
    """Compare each convolution in each dtype and layout. All their kernels compile together before."""
    for dtype in dict.fromkeys(dtype for dtype, _ in kinds):
        some = [layout for each, layout in kinds if each == dtype]
        with multiplying(dtype):
            thunks = (thunk for call in every for layout in some for thunk in warm.launchers(call, dtype, layout))
            warm.compile_together(place, thunks)
    for call in every:
        for dtype, layout in kinds:
            yield compared(place, call, dtype, layout)


def _poolings(place: Place) -> Results:
    for call in calls.poolings(place):
        for dtype in ("float32",) if place.tiny else ("bfloat16", "float16", "float32"):
            yield compared(place, call, dtype, "channels last")


def compared(place: Place, call: Call, dtype: str, layout: str) -> dict[str, Any]:
    """Compare values and gradients of a call with float64, on the same rounded tensors."""
    with multiplying(dtype):
        given = call.prepared(dtype, layout)
        out = call.operator(**given, **call.options)
        grad = calls.drawn_grad(out)
        _poison(place)
        got = call.results(given, grad)
        want = calls.reference(call, given, grad)
    return {"key": {"call": call.name, "dtype": dtype, "layout": layout}} | verdict(got, want, TOLERANCE[dtype])


def _attention(place: Place) -> Results:
    for dtype in ("float32",) if place.tiny else ("bfloat16", "float16", "float32"):
        yield compared(place, calls.attention(place), dtype, "contiguous")


def verdict(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> dict[str, Any]:
    """Return the largest error, the tensor that has it, and whether it is allowed."""
    found = calls.errors(got, want)
    worst = max(found, key=lambda name: found[name])
    error = float(f"{found[worst]:.3g}") if math.isfinite(found[worst]) else None
    return {"error64": error, "worst": worst, "tolerance": tolerance, "right": found[worst] <= tolerance}


def _poison(place: Place) -> None:
    torch.full((_POISON if place.on_gpu else 1 << 12,), math.nan, device=place.device)


def _pair(device: str) -> list[Call]:
    """Return a convolution and a pooling that take a while."""
    row = ConvRow(2, 64, 64, 40, 40, offset_groups=2) if device == "cuda" else ConvRow(1, 8, 8, 4, 5)
    pooled = calls.poolings(Place(device, tiny=device != "cuda"))[-1]
    return [calls.convolution("convolution", row, device), pooled]


def _stream(place: Place) -> Results:
    """Check calls on another stream whose inputs arrive late. A kernel on the default stream would read old values."""
    if not place.on_gpu:
        raise Absent("a CPU has no streams")
    with multiplying("float32"):
        for call in _pair(place.device):
            yield from _streamed(call)


def _streamed(call: Call) -> Results:
    given = call.prepared("float32")
    late = {name: torch.zeros_like(value).requires_grad_(value.requires_grad) for name, value in given.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(50_000_000)
        for name, value in late.items():
            value.copy_(given[name])
        with torch.enable_grad():
            got = call.results(late)
    stream.synchronize()
    want = calls.reference(call, given, calls.drawn_grad(got["output"]))
    yield {"key": {"call": call.name, "check": "stream"}} | verdict(got, want, TOLERANCE["float32"])


def _replay(place: Place) -> Results:
    """Check a graph of forward and backward that is captured with some inputs and replayed twice with others."""
    if not place.on_gpu:
        raise Absent("a CPU has no CUDA graphs")
    for call in _pair(place.device):
        for dtype in ("float32", "bfloat16"):
            with multiplying(dtype):
                yield from _replayed(call, dtype)


def _replayed(call: Call, dtype: str) -> Results:
    given = call.prepared(dtype, "channels last")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        grad = calls.drawn_grad(call.operator(**given, **call.options))
        call.results(given, grad)  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call.results(given, grad)
    for turn in (1, 2):
        with torch.no_grad():
            given["input"].mul_(-2).add_(turn)
            given["offset"].mul_(0.5)
        graph.replay()
        torch.cuda.synchronize()
        found = verdict(captured, calls.reference(call, given, grad), TOLERANCE[dtype])
        yield {"key": {"call": call.name, "check": "graph", "dtype": dtype, "replay": turn}} | found


def _deterministic(place: Place) -> Results:
    """Check that deterministic mode gives the same bits twice, and that they are right."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with multiplying("float32"):
            for call in _pair(place.device):
                given = call.prepared("float32")
                first, second = (call.results(given) for _ in range(2))
                same = all(torch.equal(first[name], second[name]) for name in first)
                want = calls.reference(call, given, calls.drawn_grad(first["output"]))
                found = verdict(first, want, TOLERANCE["float32"])
                found["right"] = found["right"] and same
                yield {"key": {"call": call.name, "check": "deterministic"}, "same_bits": same} | found
    finally:
        torch.use_deterministic_algorithms(False)
