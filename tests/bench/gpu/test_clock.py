"""The clock with a pretended GPU: what is captured, and in which order everything is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pliant.bench.gpu.clock import LEAST_ROUNDS, Clock, quartiles
from pliant.bench.gpu.steps import Place


class Gpu:
    """What the clock asks of `torch.cuda`; time goes on with each call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heard: list[str] = []
        self.capturing = False
        self.fails = False
        self.stream: Any = SimpleNamespace(wait_stream=lambda other: None, name="first")

    def call(self, name: str, milliseconds: float) -> Any:
        def run() -> str:
            self.heard.append(f"captured {name}" if self.capturing else name)
            self.now += milliseconds
            if self.capturing and self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            return name

        return run

    def module(self) -> SimpleNamespace:
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Graph:
            def replay(self) -> None:
                gpu.heard.append("replay")
                gpu.now += 2.0

        @contextlib.contextmanager
        def graph(one: Graph) -> Iterator[None]:
            gpu.stream, gpu.capturing = SimpleNamespace(name="of the capture"), True
            yield
            gpu.stream, gpu.capturing = SimpleNamespace(name="first"), False

        def set_stream(stream: Any) -> None:
            gpu.stream, gpu.capturing = stream, False

        return SimpleNamespace(
            Event=Event,
            CUDAGraph=Graph,
            graph=graph,
            set_stream=set_stream,
            synchronize=lambda: None,
            current_stream=lambda: gpu.stream,
            Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            stream=lambda stream: contextlib.nullcontext(),
            get_device_properties=lambda index: SimpleNamespace(L2_cache_size=1),
            memory_allocated=lambda: 100,
            reset_peak_memory_stats=lambda: None,
            max_memory_allocated=lambda: 350,
            _sleep=lambda cycles: None,
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(torch, "cuda", made.module())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **options: empty(8, **options))
    return made


def clock(gpu: Gpu) -> Clock:
    made = Clock(Place("cuda"))
    made._flush = lambda: gpu.heard.append("flush")  # type: ignore[method-assign]
    return made


def test_a_call_compiles_before_it_is_captured(gpu: Gpu) -> None:
    captured = clock(gpu).capture(gpu.call("a", 5.0))
    assert captured.graph
    assert gpu.heard == ["a", "a", "a", "captured a", "replay"]
    assert captured.run() == "a"
    assert gpu.heard[-1] == "replay"


def test_a_call_whose_kernels_a_graph_does_not_hold_is_timed_as_it_is(gpu: Gpu) -> None:
    captured = clock(gpu).capture(gpu.call("a", 5.0), "launched elsewhere")
    assert (captured.graph, captured.why_not) == (False, "launched elsewhere")
    assert gpu.heard == []


def test_what_cannot_be_captured_is_timed_as_it_is(gpu: Gpu) -> None:
    gpu.fails = True
    captured = clock(gpu).capture(gpu.call("a", 5.0))
    assert not captured.graph
    assert captured.why_not == "operation not permitted when stream is capturing"
    assert gpu.stream.name == "first"
    captured.run()
    assert gpu.heard[-1] == "a"


def test_the_cache_is_written_over_before_each_timed_call(gpu: Gpu) -> None:
    found = clock(gpu).device_seconds({"a": gpu.call("a", 3.0), "b": gpu.call("b", 7.0)}, 0.0)
    assert found == {"a": [0.003] * LEAST_ROUNDS, "b": [0.007] * LEAST_ROUNDS}
    timed = gpu.heard[4:]  # after the turns that tell how many rounds there are
    assert timed[::2] == ["flush"] * (2 * LEAST_ROUNDS)
    assert timed[1::2] == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]


def test_memory_is_what_a_call_adds_at_its_peak(gpu: Gpu) -> None:
    assert clock(gpu).peak_bytes(gpu.call("a", 1.0)) == 250


def test_a_device_is_busy_while_kernels_run(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, device: str, microseconds: int) -> SimpleNamespace:
        took = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(name=name, device_type=getattr(torch.autograd.DeviceType, device), time_range=took)

    events = [event("a", "CUDA", 30), event("launch", "CPU", 500), event("b", "CUDA", 12)]
    watched = SimpleNamespace(events=lambda: [*events, event("Activity Buffer Request", "CUDA", 90)])
    monkeypatch.setattr("pliant.bench.gpu.clock.profile", lambda activities: contextlib.nullcontext(watched))
    assert clock(gpu).busy_seconds(gpu.call("a", 1.0)) == pytest.approx([42e-6] * 3)
    assert Clock(Place("cpu")).busy_seconds(gpu.call("a", 1.0)) == []


def test_quartiles_in_milliseconds() -> None:
    assert quartiles([0.001, 0.002, 0.003, 0.004, 0.005]) == {"median_ms": 3.0, "lower_ms": 2.0, "upper_ms": 4.0}
    assert quartiles([0.001])["median_ms"] == 1.0
