"""The worst and the best images of a test."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from pliant.engine.extremes import Extremes, ends


@example([0.5] * 9, 2)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan]), max_size=40), st.integers(1, 7))
def test_they_are_those_of_a_sort_and_few_are_kept(scores: list[float], number: int) -> None:
    extremes = Extremes(number)
    for place, score in enumerate(scores):
        extremes.add(score, f"result {place}")
    kept = extremes.gathered()
    ranked = sorted((score, place) for place, score in enumerate(scores) if not math.isnan(score))
    assert len(kept) == min(2 * number, len(ranked))
    extreme = ranked if len(ranked) <= 2 * number else ranked[:number] + ranked[-number:]
    assert [(image.score, image.place) for image in kept] == extreme
    assert all(image.result == f"result {image.place}" and scores[image.place] == image.score for image in kept)
    worst, best = ends(kept, number)
    assert not {image.place for image in worst} & {image.place for image in best}
    assert len(worst) <= number >= len(best)


def test_the_most_extreme_ones_come_first() -> None:
    assert ends([1, 2, 3, 4, 5], 2) == ([1, 2], [5, 4])
    assert ends([1, 2, 3], 6) == ([1, 2], [3])
    assert ends([], 6) == ([], [])
