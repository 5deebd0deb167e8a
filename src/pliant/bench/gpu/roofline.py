"""Measures the ceilings of a device, and derives the shortest possible time of a convolution from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pliant.bench.gpu.clock import Clock
from pliant.bench.gpu.problems import DTYPES, Problem, multiplying
from pliant.bench.gpu.steps import Place, Results, Step
from pliant.bench.measure import TRAINING

NAME = "ceilings"


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy (read and written), and operations per second of a matrix product in each dtype."""

    bandwidth: float
    operations: Mapping[str, float]

    def floor(self, problem: Problem, what: str) -> tuple[float, str]:
        """Return the shortest possible time of a pass in seconds, and its limit: `"bytes"` or `"operations"`.

        Bytes count every tensor once. Operations count the matrix products only: one in the forward, three with the
        backward.
        """
        training = what == TRAINING
        moving = problem.bytes(training) / self.bandwidth
        multiplying = problem.operations(training) / self.operations[problem.dtype]
        return max((moving, "bytes"), (multiplying, "operations"))


def step() -> Step:
    """Return the step that measures the ceilings."""
    return Step(NAME, NAME, 4, _measure)


def from_ledger(lines: list[dict[str, Any]], gpu: str) -> Ceilings | None:
    """Return the last measured ceilings of a GPU, or None."""
    found = [line for line in lines if line["step"] == NAME and line.get("gpu") == gpu and "bandwidth" in line]
    return Ceilings(found[-1]["bandwidth"], found[-1]["operations"]) if found else None


def _measure(place: Place) -> Results:
    yield {"key": {}, **measured(place)}


def measured(place: Place) -> dict[str, Any]:
    """Time one copy of memory, and one product of square matrices in each dtype."""
    clock = Clock(place)
    some = torch.empty(1 << (12 if place.tiny else 30), dtype=torch.int8, device=place.device)
    other = torch.empty_like(some)
    copied = statistics.median(clock.device_seconds({"copy": partial(other.copy_, some)}, 0.2)["copy"])
    found: dict[str, Any] = {"bandwidth": 2 * some.numel() / copied, "operations": {}}
    for dtype in DTYPES:
        side = 32 if place.tiny else 4096 if dtype == "float32" else 8192
        with multiplying(dtype):
            a, b = (torch.randn(side, side, device=place.device).to(DTYPES[dtype]) for _ in range(2))
            seconds = statistics.median(clock.device_seconds({"product": partial(torch.matmul, a, b)}, 0.2)["product"])
        found["operations"][dtype] = 2 * side**3 / seconds
    return found
