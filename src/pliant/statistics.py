"""Means over seeds, and differences between groups of runs with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """The mean of a group.

    Attributes:
        mean: The mean; NaN without values.
        deviation: The sample standard deviation; NaN with less than two values.
        number: The number of values.
    """

    mean: float
    deviation: float
    number: int

    def percent(self) -> str:
        """Such as ``52.0 ± 2.0``; without ``±`` for one value, and empty for none."""
        if self.number == 0:
            return ""
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.deviation:.1f}" if self.number > 1 else "")


@dataclass(frozen=True)
class Difference:
    """The difference between the means of two groups.

    Attributes:
        difference: The mean of the second group minus that of the first, over the pairs if it is paired.
        low, high: The ends of the confidence interval; NaN if there are too few values for one.
        paired: Whether values of the same seed were compared.
        number: The number of pairs, or of values of the smaller group.
    """

    difference: float
    low: float
    high: float
    paired: bool
    number: int

    def points(self) -> str:
        """The difference in percentage points, such as ``+5.0``; empty if a group is empty."""
        return "" if math.isnan(self.difference) else f"{100 * self.difference:+z.1f}"

    def interval(self) -> str:
        """The confidence interval in percentage points, such as ``+2.5 to +7.5``; empty if there is none."""
        return "" if math.isnan(self.low) else f"{100 * self.low:+z.1f} to {100 * self.high:+z.1f}"


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and sample standard deviation; values that are NaN are left out."""
    import numpy as np

    known = np.array([value for value in values if not math.isnan(value)])
    mean = float(known.mean()) if len(known) else math.nan
    return Mean(mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known))


def difference_of(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> Difference:
    """Compare two groups of values by seed.

    If at least two seeds are in both groups, only these are compared, in pairs, with Student's t interval of the
    differences (`scipy.stats.ttest_rel`). A single value is compared with that of its seed in the other group, without
    an interval. Otherwise the groups are independent, with Welch's t interval, which does not assume equal variances
    (`scipy.stats.ttest_ind`). Both assume that values are about normally distributed over seeds.

    Args:
        first, second: A value for each seed; NaN is left out.
        level: The confidence of the interval.

    Examples:
        >>> from pliant.statistics import difference_of
        >>> found = difference_of({0: 0.50, 1: 0.52, 2: 0.54}, {0: 0.55, 1: 0.58, 2: 0.58})
        >>> found.paired, round(found.difference, 3), round(found.low, 3), round(found.high, 3)
        (True, 0.05, 0.025, 0.075)
    """
    import numpy as np
    from scipy import stats

    one, two = ({seed: v for seed, v in group.items() if not math.isnan(v)} for group in (first, second))
    seeds = sorted(one.keys() & two.keys())
    paired = len(seeds) > 1 or (len(seeds) == 1 and 1 in (len(one), len(two)))
    a, b = (
        np.array([group[seed] for seed in seeds] if paired else list(group.values()), dtype=float)
        for group in (one, two)
    )
    number = min(len(a), len(b))
    if not number:
        return Difference(math.nan, math.nan, math.nan, paired, number)
    difference = float(b.mean() - a.mean())
    if number < 2:
        return Difference(difference, math.nan, math.nan, paired, number)
    if np.ptp(b - a if paired else a) == 0 and (paired or np.ptp(b) == 0):  # scipy's tests would divide by zero
        return Difference(difference, difference, difference, paired, number)
    test = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=False)
    interval = test.confidence_interval(level)
    return Difference(difference, float(interval.low), float(interval.high), paired, number)
