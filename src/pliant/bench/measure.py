"""One row: make its implementations, compare them with the reference, then time those that are right."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pliant.bench.gate import Expected, check, expected
from pliant.bench.implementation import Implementation, Missing
from pliant.bench.peers import Column
from pliant.bench.rows import ConvRow, PoolRow
from pliant.bench.timing import Ratio, Turn, interleave, ratio

FORWARD, TRAINING = "forward", "forward + backward"
Interleave = Callable[[Mapping[str, Turn], float], dict[str, list[float]]]


@dataclass
class Outcome:
    """What became of one implementation of a row.

    Attributes:
        status: `"right"`, `"wrong"` (and so not timed) or `"missing"`.
        reason: why it is missing.
        error: its largest difference from the float64 reference, as a part of the reference's largest value; None
            where that is no number.
        where: the tensor that has this difference.
        tolerance: the largest error that is right.
        version: of the library, where it is not in this process.
        seconds: of one call, by pass and round.
        median_seconds: by pass.
        ratios: to the row's base, by pass.
    """

    status: str
    reason: str = ""
    error: float | None = None
    where: str = ""
    tolerance: float | None = None
    version: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    median_seconds: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)


@dataclass
class RowResult:
    """A row's outcomes by column; ratios are to the column `base`."""

    name: str
    base: str
    outcomes: dict[str, Outcome]
    passes: tuple[str, ...] = (FORWARD, TRAINING)

    @property
    def wrong(self) -> list[str]:
        return [name for name, outcome in self.outcomes.items() if outcome.status == "wrong"]


def measure(
    row: ConvRow | PoolRow,
    columns: Mapping[str, Column],
    threads: int,
    seconds: float,
    timed: Interleave = interleave,
) -> RowResult:
    """Gate, then time.

    Args:
        columns: by name; the first is the base of the ratios.
        threads: for implementations that do not follow torch's number.
        seconds: for the row, shared by its passes.
        timed: how turns are timed.
    """
    tensors = row.tensors()
    wanted: dict[tuple[str, frozenset[str]], Expected] = {}
    outcomes: dict[str, Outcome] = {}
    right: dict[str, Implementation] = {}
    made: list[Implementation] = []
    try:
        for name, column in columns.items():
            try:
                implementation = column(row, tensors, threads)
                made.append(implementation)
                rule = (implementation.border, implementation.ignored)
                if rule not in wanted:
                    wanted[rule] = expected(row, tensors, *rule)
                outcomes[name] = _judge(implementation, wanted[rule])
            except Missing as reason:
                outcomes[name] = Outcome("missing", str(reason))
                continue
            if outcomes[name].status == "right":
                right[name] = implementation
        wanted.clear()
        base = next(iter(columns))
        if base in right:
            for what, turns in _passes(right).items():
                note(outcomes, base, what, timed(turns, seconds / 2))
    finally:
        for implementation in made:
            implementation.close()
    return RowResult(row.name, base, outcomes)


def _judge(implementation: Implementation, wanted: Expected) -> Outcome:
    verdict = check(implementation, wanted)
    return judged(verdict.error, verdict.where, implementation.tolerance, implementation.version)


def judged(error: float, where: str, tolerance: float, version: str = "") -> Outcome:
    """The outcome of a comparison; an error that is no number is none."""
    status = "right" if error <= tolerance else "wrong"
    return Outcome(status, "", error if math.isfinite(error) else None, where, tolerance, version)


def _passes(implementations: Mapping[str, Implementation]) -> dict[str, dict[str, Turn]]:
    trained = {name: each for name, each in implementations.items() if each.trains}
    return {
        FORWARD: {name: partial(each.turn, False) for name, each in implementations.items()},
        TRAINING: {name: partial(each.turn, True) for name, each in trained.items()},
    }


def note(outcomes: dict[str, Outcome], base: str, what: str, found: Mapping[str, list[float]]) -> None:
    """Write down the seconds of a pass, by column and round, and what follows from them."""
    for name, by_round in found.items():
        outcomes[name].seconds[what] = by_round
        outcomes[name].median_seconds[what] = statistics.median(by_round)
        outcomes[name].ratios[what] = ratio(by_round, found[base])
