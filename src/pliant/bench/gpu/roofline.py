"""The ceilings of a device, measured, and the least time in which a convolution could be done under them."""

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
    """Bytes a second of a copy, read and written, and operations a second of a matrix product, by dtype."""

    bandwidth: float
    operations: Mapping[str, float]

    def floor(self, problem: Problem, what: str) -> tuple[float, str]:
        """The seconds that a pass takes at least, and what takes them: `"bytes"` or `"operations"`.

        Bytes are those of every tensor once; operations are the products alone, one in the forward and three with
        the backward.
        """
        training = what == TRAINING
        moving = problem.bytes(training) / self.bandwidth
        multiplying = problem.operations(training) / self.operations[problem.dtype]
        return max((moving, "bytes"), (multiplying, "operations"))


def step() -> Step:
    """Measures the ceilings."""
    return Step(NAME, NAME, 4, _measure)


def from_ledger(lines: list[dict[str, Any]], gpu: str) -> Ceilings | None:
    """The ceilings of a GPU as last measured, or None."""
    found = [line for line in lines if line["step"] == NAME and line.get("gpu") == gpu and "bandwidth" in line]
    return Ceilings(found[-1]["bandwidth"], found[-1]["operations"]) if found else None


def _measure(place: Place) -> Results:
    yield {"key": {}, **measured(place)}


def measured(place: Place) -> dict[str, Any]:
    """One copy of memory, and one product of square matrices in each dtype."""
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
