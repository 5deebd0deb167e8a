"""Means and differences over seeds, against numbers from textbooks and against scipy by another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pliant.statistics import difference_of, mean_of


def test_mean_and_deviation() -> None:
    found = mean_of([1.0, 2.0, 4.0, math.nan])
    assert (found.mean, found.number) == (pytest.approx(7 / 3), 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert math.isnan(mean_of([2.0]).deviation)
    assert math.isnan(mean_of([]).mean)


def test_pairs_use_the_differences_alone() -> None:
    # Large differences between seeds, which both groups share, and a constant gain with little noise.
    first = {0: 0.1, 1: 0.5, 2: 0.9, 7: 0.0}
    second = {2: 0.95, 1: 0.56, 0: 0.14, 9: 1.0}
    found = difference_of(first, second)
    assert (found.paired, found.number) == (True, 3)
    gains = np.array([0.04, 0.06, 0.05])
    half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / math.sqrt(3)
    assert found.difference == pytest.approx(0.05)
    assert (found.low, found.high) == (pytest.approx(0.05 - half), pytest.approx(0.05 + half))


def test_without_pairs_the_interval_is_welchs() -> None:
    first, second = [0.30, 0.32, 0.31], [0.35, 0.45, 0.40, 0.50]
    found = difference_of(dict(enumerate(first)), dict(enumerate(second, start=10)))
    assert not found.paired
    variances = [np.var(group, ddof=1) / len(group) for group in (first, second)]
    freedom = sum(variances) ** 2 / sum(v**2 / (n - 1) for v, n in zip(variances, (3, 4), strict=True))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert (found.low, found.high) == (pytest.approx(found.difference - half), pytest.approx(found.difference + half))


def test_few_or_equal_values() -> None:
    alone = difference_of({0: 0.5}, {0: 0.7})
    assert alone.difference == pytest.approx(0.2)
    assert math.isnan(alone.low)
    one_of_three = difference_of({0: 0.5, 1: 0.9, 2: 0.1}, {1: 0.8})
    assert (one_of_three.paired, one_of_three.number) == (True, 1)
    assert one_of_three.difference == pytest.approx(-0.1)
    assert math.isnan(one_of_three.low)
    none = difference_of({0: math.nan}, {0: 0.7})
    assert math.isnan(none.difference)
    same = difference_of({0: 0.5, 1: 0.6}, {0: 0.75, 1: 0.85})
    assert (same.low, same.high) == (pytest.approx(0.25), pytest.approx(0.25))
    constant = difference_of({0: 0.5, 1: 0.5}, {2: 0.75, 3: 0.75})
    assert (constant.low, constant.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_what_rounds_to_zero_has_no_minus() -> None:
    assert difference_of({0: 0.5}, {0: 0.4998}).points() == "+0.0"
