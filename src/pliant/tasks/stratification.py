"""Dividing images into parts with the same share of each class."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_GROWTH = 1.5  # how much larger than asked for a part may get, so that rare classes are in it


class Group(NamedTuple):
    """Images that belong into the same part: their number, and the classes that are in any of them."""

    images: int
    classes: frozenset[int]


def stratify(groups: Sequence[Group], fractions: Mapping[str, float]) -> list[str]:
    """The part of each group, so that every class is in all parts in the same proportion, as far as that is possible.

    This is iterative stratification (Sechidis et al., 2011): the class with the fewest groups left is distributed
    first, each group to the part that lacks most of this class. Here groups may consist of several images; and a part
    without a class comes before others, so that three groups are enough for three parts.

    Args:
        groups: the groups, in an order that decides between equal choices.
        fractions: the fraction of all images that each part should have. The first part takes what fits into no other.

    Returns:
        The name of a part for each group.
    """
    parts = _Parts(groups, fractions)
    members: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        for label in group.classes:
            members[label].append(place)
    left = {label: len(places) for label, places in members.items()}
    chosen: dict[int, str] = {}
    while left:
        rarest = min(left, key=lambda label: (left[label], label))
        for place in members[rarest]:
            if place not in chosen:
                chosen[place] = parts.take(groups[place], rarest)
                for label in groups[place].classes:
                    left[label] -= 1
        left = {label: number for label, number in left.items() if number}
    for place, group in enumerate(groups):
        if place not in chosen:
            chosen[place] = parts.take(group, None)
    return [chosen[place] for place in range(len(groups))]


class _Parts:
    """What each part still lacks: images, and images of each class."""

    def __init__(self, groups: Sequence[Group], fractions: Mapping[str, float]) -> None:
        total = sum(group.images for group in groups)
        counts: Counter[int] = Counter()
        for group in groups:
            counts.update(dict.fromkeys(group.classes, group.images))
        first = next(iter(fractions))
        self.lacking = {part: fraction * total for part, fraction in fractions.items()}
        self.of_class = {part: {c: fraction * n for c, n in counts.items()} for part, fraction in fractions.items()}
        self.there: dict[str, set[int]] = {part: set() for part in fractions}
        self.room = {part: math.ceil(_GROWTH * number) for part, number in self.lacking.items()} | {first: total}

    def take(self, group: Group, label: int | None) -> str:
        """Put a group into the part that lacks it most, and return the part."""
        fitting = [part for part, room in self.room.items() if room >= group.images] or [next(iter(self.room))]
        without = [part for part in fitting if label is not None and label not in self.there[part]]
        best = without[0] if without else max(fitting, key=lambda part: (self._need(part, label), self.lacking[part]))
        self.lacking[best] -= group.images
        self.room[best] -= group.images
        self.there[best] |= group.classes
        for each in group.classes:
            self.of_class[best][each] -= group.images
        return best

    def _need(self, part: str, label: int | None) -> float:
        return 0.0 if label is None else self.of_class[part][label]
