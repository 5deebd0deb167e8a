"""Interleaved timing: all implementations of a row take turns within every round, so that what slows the machine
for a while slows them all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEAST_ROUNDS = 3
MOST_ROUNDS = 100
TURN = 0.03  # seconds that a turn lasts at least, by repeated calls
LONG = 0.2  # seconds from which a call needs no other one to warm up the caches and threads before it
MOST_CALLS = 1000

Turn = Callable[[int], float]
"""Runs so many calls and returns the seconds that they took together."""


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios within rounds, and their quartiles."""

    value: float
    lower: float
    upper: float


def interleave(
    turns: Mapping[str, Turn], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time all of `turns` in rounds for about `seconds`, at least three rounds; seconds of one call, by round.

    Everyone warms up first. A turn repeats a short call and begins with one that is not counted. Each round starts
    with another implementation, so that none always follows the same one.
    """
    plans = {name: _plan(turn) for name, turn in turns.items()}
    found: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    start = clock()
    for index in range(MOST_ROUNDS):
        spent = clock() - start
        if index >= LEAST_ROUNDS and spent * (index + 1) / index > seconds:
            break
        first = index % len(names)
        for name in (*names[first:], *names[:first]):
            calls, warms_up = plans[name]
            if warms_up:
                turns[name](1)
            found[name].append(turns[name](calls) / calls)
    return found


def _plan(turn: Turn) -> tuple[int, bool]:
    """How many calls a turn is, and whether one more goes before them."""
    turn(1)
    estimate = turn(1)
    if estimate >= LONG:
        return 1, False
    return min(MOST_CALLS, max(1, math.ceil(TURN / max(estimate, 1e-9)))), True


def ratio(found: list[float], base: list[float]) -> Ratio:
    """How many times the base's cost; both by round, since a machine that others use is not the same for long."""
    rounds = [one / other for one, other in zip(found, base, strict=True)]
    lower, middle, upper = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(middle, lower, upper)
