"""The learning-rate schedule."""

from __future__ import annotations

import pytest

from pliant.engine import Schedule


def test_paper_schedule_drops_at_two_thirds() -> None:
    schedule = Schedule(max_steps=30_000, lr=1e-3)
    assert [schedule.factor(step) for step in (0, 19_999)] == [1.0, 1.0]
    assert schedule.factor(20_000) == pytest.approx(0.1)
    assert schedule.factor(29_999) == pytest.approx(0.1)


def test_warm_up_is_constant() -> None:
    schedule = Schedule(max_steps=100, lr=5e-4, warmup_steps=10, decay_at=(0.5, 0.8))
    assert {schedule.factor(step) for step in range(10)} == {0.1}
    assert schedule.factor(10) == 1.0
    assert schedule.factor(50) == pytest.approx(0.1)
    assert schedule.factor(80) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"lr": 0.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"decay_at": (0.8, 0.5)}, "decay_at"),
        ({"decay_at": (1.0,)}, "decay_at"),
        ({"decay": 0.0}, "decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
    ],
)
def test_values_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"max_steps": 10, "lr": 0.1, **change})
