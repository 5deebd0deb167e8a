"""The values that a setting may have: declared beside it, checked before anything else, and told in the error."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers between bounds, which are finite; of a tuple, each of its numbers.

    Attributes:
        least: The smallest that is allowed ...
        above: ... or the one below all that are.
        most: The largest that is allowed ...
        below: ... or the one above all that are.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` with name, value and range unless the value lies within."""
        for number in value if isinstance(value, list | tuple) else (value,):
            if not self._holds(number):
                raise ValueError(f"{name} must be {self}, got {_shown(value)}")

    def _holds(self, number: float) -> bool:
        return (
            (isinstance(number, int) or math.isfinite(number))
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Items:
    """What holds for a tuple as a whole.

    Attributes:
        lengths: The numbers of items that are allowed; None for any.
        some: Whether there must be an item.
        rising: Whether each item must be larger than the one before.
        distinct: Whether no two items may be the same.
    """

    lengths: Collection[int] | None = None
    some: bool = False
    rising: bool = False
    distinct: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` with name, value and range unless the tuple is such."""
        if not self._holds(tuple(value)):
            raise ValueError(f"{name} must be {self}, got {_shown(value)}")

    def _holds(self, items: Sequence[Any]) -> bool:
        return (
            (self.lengths is None or len(items) in self.lengths)
            and (len(items) > 0 or not self.some)
            and (not self.rising or all(one < other for one, other in pairwise(items)))
            and (not self.distinct or len(set(items)) == len(items))
        )

    def __str__(self) -> str:
        number = "one or more items" if self.some else "items"
        if self.lengths is not None:
            number = f"{' or '.join(map(str, self.lengths))} items"
        kinds = [word for word, wanted in (("rising", self.rising), ("different", self.distinct)) if wanted]
        return f"{number}, each {' and '.join(kinds)}" if kinds else number


@dataclass(frozen=True)
class Text:
    """A text, or texts, with more than spaces."""

    def check(self, name: str, value: Any) -> None:
        """Raise `ValueError` with the name unless there is something in every text."""
        if not all(text.strip() for text in ((value,) if isinstance(value, str) else value)):
            raise ValueError(f"{name} must be {self}, got {value!r}")

    def __str__(self) -> str:
        return "text that is not empty"


STEPS = Range(least=1, most=10**9)
WARMUP_STEPS = Range(least=0, most=10**9)
IMAGES = Range(least=1, most=2**16)
RATE = Range(above=0, most=100)
MULTIPLIER = Range(least=0, most=1000)
FACTOR = Range(above=0, most=1)
FRACTION = Range(least=0, most=1)
BETWEEN = Range(above=0, below=1)
MOMENTUM = Range(least=0, below=1)
NORM = Range(above=0)
SEED = Range(least=0, most=2**32 - 1)  # what every generator takes
PIXELS = Range(least=16, most=2**14)  # a cell of the feature map at least
DILATION = Range(least=1, most=128)
GROUPS = Range(least=1, most=1024)
LAYERS = Range(least=0, most=1000)
STAGES = Range(least=0, most=3)
BINS = Range(least=1, most=32)
ANCHOR_SCALES = (Items(some=True, distinct=True), Range(least=1, most=1024))
COLOUR = (Items(lengths=(3,)), FRACTION)
SCORE = Range(least=0, below=1)  # at 1 nothing would be found
OVERLAP = FRACTION
BACKGROUND = Range(least=0, below=0.5)  # RoIs of half and more are objects
DETECTIONS = Range(least=1, most=10_000)

Check = Range | Items | Text


def check_values(values: Mapping[str, Any], checks: Mapping[str, Sequence[Check]]) -> None:
    """Check values by name; None stands for nothing to check.

    Raises:
        ValueError: If one is out of its range; the message shows its name, the range and the value.
    """
    for name, value in values.items():
        for check in checks.get(name, ()) if value is not None else ():
            check.check(name, value)


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass whose annotations are `Annotated` with their ranges.

    Raises:
        ValueError: See `check_values`.
    """
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    check_values(values, declared(type(instance)))


def declared(cls: type) -> dict[str, tuple[Check, ...]]:
    """The ranges of a dataclass's fields by name; fields without one are missing."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        checks = tuple(each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Check))
        if checks:
            found[name] = checks
    return found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
