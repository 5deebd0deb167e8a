"""Measures calls on a device: time of replayed CUDA graphs, time of eager calls, and peak memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pliant.bench.gpu.steps import Place

Call = Callable[[], object]

LEAST_ROUNDS, MOST_ROUNDS = 5, 60
_EAGER_ROUNDS, _EAGER_SECONDS, _MOST_EAGER_CALLS = 5, 0.01, 50
_BUSY_ROUNDS = 3
_AHEAD = 5_000_000  # cycles of the device, some milliseconds
_FLUSHED = 3  # times the second-level cache


def quartiles(values: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles of some seconds, in milliseconds."""
    if len(values) == 1:
        values = values * 2
    lower, middle, upper = (1e3 * each for each in statistics.quantiles(values, n=4, method="inclusive"))
    return {"median_ms": round(middle, 6), "lower_ms": round(lower, 6), "upper_ms": round(upper, 6)}


@dataclass
class Captured:
    """A call to time: the replay of its CUDA graph, or the call itself if it cannot be captured.

    Attributes:
        run: The function that is timed.
        graph: Whether it replays a graph.
        why_not: Why it does not.
    """

    run: Call
    graph: bool = False
    why_not: str = ""


class Clock:
    """Times calls on a device. All calls take turns in every round, and the cache is overwritten before each call."""

    def __init__(self, place: Place) -> None:
        self.place = place
        gc.collect()
        gc.freeze()  # a capture collects garbage first: what is there now need not be looked at each time
        self._flushed: torch.Tensor | None = None
        if place.on_gpu:
            size = torch.cuda.get_device_properties(0).L2_cache_size
            self._flushed = torch.empty(_FLUSHED * max(size, 1 << 24), dtype=torch.int8, device=place.device)

    def capture(self, call: Call, why_not: str = "") -> Captured:
        """Capture a call as a CUDA graph. It runs three times before, so that all kernels have compiled.

        Args:
            call: what is captured.
            why_not: why a graph would not hold all of its kernels, if so.
        """
        if why_not or not self.place.on_gpu:
            return Captured(call, why_not=why_not or "a CPU has no CUDA graphs")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self.place.wait()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                kept = call()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # which torch leaves changed where the end of the capture fails
            self.place.wait()
            return Captured(call, why_not=str(error).strip().splitlines()[0][:200])

        def replay() -> object:
            graph.replay()
            return kept  # its memory is the graph's

        replay()
        self.place.wait()
        return Captured(replay, graph=True)

    def device_seconds(self, calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
        """Return the seconds of one call on the device for each round. All rounds together take about `seconds`."""
        rounds = 1  # a rehearsal's times are of no interest
        if self.place.on_gpu:
            once = sum(self._turn(call) for call in calls.values())
            rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / max(once, 1e-6))))
        names = list(calls)
        events: dict[str, list[Any]] = {name: [] for name in names}
        for index in range(rounds):
            first = index % len(names)
            for name in (*names[first:], *names[:first]):
                self._flush()
                self._let_the_host_ahead()
                events[name].append(self._timed(calls[name]))
        self.place.wait()
        return {name: [_elapsed(pair) for pair in pairs] for name, pairs in events.items()}

    def eager_seconds(self, calls: Mapping[str, Call]) -> dict[str, list[float]]:
        """Return the seconds of one call in a loop, by the host's clock. The slower of host and device decides."""
        counts = dict.fromkeys(calls, 1)
        for name, call in calls.items() if self.place.on_gpu else ():
            counts[name] = min(_MOST_EAGER_CALLS, max(1, int(_EAGER_SECONDS / max(self._turn(call), 1e-6))))
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_EAGER_ROUNDS if self.place.on_gpu else 1):
            for name, call in calls.items():
                self.place.wait()
                start = time.perf_counter()
                for _ in range(counts[name]):
                    call()
                self.place.wait()
                found[name].append((time.perf_counter() - start) / counts[name])
        return found

    def busy_seconds(self, call: Call) -> list[float]:
        """Return the seconds for which kernels ran in each of some calls, without the gaps between them.

        Where the host launches slower than the device runs, a call takes longer than this.
        """
        if not self.place.on_gpu:
            return []
        call()
        found = []
        for _ in range(_BUSY_ROUNDS):
            self.place.wait()
            with profile(activities=[ProfilerActivity.CUDA]) as watched:
                call()
                self.place.wait()
            found.append(sum(_on_device(event) for event in watched.events() or ()))
        return found

    def peak_bytes(self, call: Call) -> int | None:
        """Return the bytes that a call allocates at its peak. None if the device does not report them."""
        if not self.place.on_gpu:
            return None
        self.place.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        self.place.wait()
        return torch.cuda.max_memory_allocated() - before

    def _flush(self) -> None:
        if self._flushed is not None:
            self._flushed.zero_()

    def _let_the_host_ahead(self) -> None:
        """Keep the device busy while the host launches what is timed, or an eager call's launches would be timed."""
        if self.place.on_gpu:
            torch.cuda._sleep(_AHEAD)

    def _turn(self, call: Call) -> float:
        self.place.wait()
        start = time.perf_counter()
        self._flush()
        call()
        self.place.wait()
        return time.perf_counter() - start

    def _timed(self, call: Call) -> Any:
        if not self.place.on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        call()
        pair[1].record()
        return pair


def _on_device(event: Any) -> float:
    """Return the seconds of a kernel, a copy or a fill."""
    runs = event.device_type == torch.autograd.DeviceType.CUDA and event.name != "Activity Buffer Request"
    return float(event.time_range.elapsed_us()) / 1e6 if runs else 0.0


def _elapsed(pair: Any) -> float:
    return pair if isinstance(pair, float) else pair[0].elapsed_time(pair[1]) / 1e3
