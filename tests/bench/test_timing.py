"""Rounds, turns and ratios, on clocks that the tests wind."""

from __future__ import annotations

import pytest

from pliant.bench.timing import LEAST_ROUNDS, MOST_ROUNDS, Ratio, Turn, interleave, ratio


class Machine:
    """Implementations that take given seconds a call, and a clock that they move."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.now = 0.0
        self.costs = costs
        self.calls: list[tuple[str, int]] = []

    def turns(self) -> dict[str, Turn]:
        return {name: lambda calls, name=name: self.turn(name, calls) for name in self.costs}  # type: ignore[misc]

    def turn(self, name: str, calls: int) -> float:
        self.calls.append((name, calls))
        self.now += self.costs[name] * calls
        return self.costs[name] * calls

    def interleave(self, seconds: float) -> dict[str, list[float]]:
        return interleave(self.turns(), seconds, lambda: self.now)


def test_seconds_are_of_one_call() -> None:
    found = Machine({"short": 0.001, "long": 0.5}).interleave(5.0)
    assert found["short"] == pytest.approx([0.001] * len(found["short"]))
    assert found["long"] == [0.5] * len(found["long"])
    assert len(found["short"]) == len(found["long"])


def test_rounds_are_interleaved_and_begin_with_everyone_in_turn() -> None:
    machine = Machine({"a": 0.5, "b": 0.5, "c": 0.5})
    machine.interleave(0.0)
    warm_up, rounds = machine.calls[:6], machine.calls[6:]
    assert [name for name, _ in warm_up] == ["a", "a", "b", "b", "c", "c"]
    assert [name for name, _ in rounds] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {calls for _, calls in rounds} == {1}


def test_a_short_call_is_repeated_after_one_that_is_not_counted() -> None:
    machine = Machine({"short": 0.004})
    machine.interleave(0.0)
    assert machine.calls == [("short", 1)] * 2 + [("short", 1), ("short", 8)] * LEAST_ROUNDS


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, LEAST_ROUNDS), (10.0, 10), (1e6, MOST_ROUNDS)])
def test_the_budget_bounds_the_rounds(seconds: float, rounds: int) -> None:
    assert len(Machine({"a": 0.25, "b": 0.75}).interleave(seconds)["a"]) == rounds


def test_what_slows_a_round_slows_everyone_in_it() -> None:
    """The third round takes ten times longer, and the ratio does not see it."""
    found = {"base": [1.0, 1.0, 10.0, 1.0, 1.0], "other": [2.0, 2.0, 20.0, 2.0, 2.0]}
    assert ratio(found["other"], found["base"]) == Ratio(2.0, 2.0, 2.0)


def test_median_and_quartiles_of_the_rounds_ratios() -> None:
    found = ratio([3.0, 2.0, 8.0, 5.0, 4.0], [1.0, 1.0, 2.0, 1.0, 4.0])
    assert found == Ratio(3.0, 2.0, 4.0)  # of 1, 2, 3, 4, 5
