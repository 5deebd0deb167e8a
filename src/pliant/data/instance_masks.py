"""Tell masks in which each object has its own number from masks of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from pliant.constants import IGNORE
from pliant.data.mask_values import COLOUR, FOREGROUND, MaskValues

_FEWEST = 8  # objects in a mask, below which numbers may as well be classes
_FEWEST_OF_MANY, _MANY = 4, 20  # the same if so many masks have objects: classes would not always come in order
_MOST_CLASSES = 64
_LOOKED_AT = 8  # masks whose pieces are counted
_MOSTLY = 0.9


def understand_instances(
    masks: Sequence[tuple[Path, Iterable[int]]], read: Callable[[Path], np.ndarray], ignored: frozenset[int]
) -> MaskValues | None:
    """What values mean that are numbers or colours of single objects: background and foreground.

    The values are numbers of objects if they run from 1 in each mask, up to another number in each; or if each is in a
    single mask; or if there are more than can be classes. And each value must be one piece of its mask.

    Args:
        masks: the path of each mask, and its values.
        read: function that reads a mask.
        ignored: values that are ignored.

    Returns:
        The meaning; None if the values may be classes.
    """
    black = COLOUR if any(value >= COLOUR for _, values in masks for value in values) else 0
    sets = [_numbers(values, black) - ignored for _, values in masks]
    used = [numbers for numbers in sets if numbers]
    if not used or sum(black in _whole(values, black) for _, values in masks) < _MOSTLY * len(masks):
        return None
    if not (_count_up(used) or _differ(used) or len(set().union(*used)) > _MOST_CLASSES):
        return None
    chosen = [path for (path, _), numbers in zip(masks, sets, strict=True) if numbers]
    shares = [_single(read(path), black) for path in chosen[:: max(1, len(chosen) // _LOOKED_AT)][:_LOOKED_AT]]
    if sum(single for single, _ in shares) < _MOSTLY * sum(number for _, number in shares):
        return None
    void = {IGNORE} if any(IGNORE in _whole(values, black) for _, values in masks) and not black else set()
    runs_on = any(IGNORE - 1 in numbers for numbers in used)  # 255 is then one more object
    return MaskValues({black: 0}, FOREGROUND, ignored | (set() if runs_on else void), bool(black), other=1)


def largest(masks: Iterable[Iterable[int]]) -> int:
    """The most values that are in one mask, without the background."""
    return max((len(set(values)) - 1 for values in masks), default=0)


def _whole(values: Iterable[int], black: int) -> set[int]:
    """The values of a mask, as colours where others have colours."""
    return {value if value >= black else COLOUR + value * 0x010101 for value in values}


def _numbers(values: Iterable[int], black: int) -> set[int]:
    """The values that may be objects: without the background, and without 255 as a single border's."""
    found = _whole(values, black) - {black}
    return found - {IGNORE} if not black and IGNORE - 1 not in found else found


def _count_up(sets: Sequence[set[int]]) -> bool:
    """Whether the values of each mask are 1 to n, with another n in most of them."""
    lengths = Counter(map(len, sets))
    if max(lengths) < (_FEWEST if len(sets) < _MANY else _FEWEST_OF_MANY) or 2 * lengths.most_common(1)[0][1] > max(
        2, len(sets)
    ):
        return False
    return sum(max(each) == len(each) for each in sets) >= _MOSTLY * len(sets)


def _differ(sets: Sequence[set[int]]) -> bool:
    """Whether hardly any value is in two masks."""
    masks = Counter(value for each in sets for value in each)
    single = sum(number == 1 for number in masks.values())
    return len(sets) > 1 and len(masks) >= _FEWEST and single >= _MOSTLY * len(masks)


def _single(raw: np.ndarray, black: int) -> tuple[int, int]:
    """The number of values that are mostly in one piece, and that of all values."""
    values, places = np.unique(raw, return_inverse=True)
    ids = places.reshape(raw.shape) + 1
    single = total = 0
    for number, box in enumerate(ndimage.find_objects(ids), start=1):
        value = int(values[number - 1])
        if value in (0, black, IGNORE):
            continue
        inside = ids[box] == number
        parts, _ = ndimage.label(inside, np.ones((3, 3)))
        total += 1
        single += int(np.bincount(parts[inside]).max()) >= _MOSTLY * int(inside.sum())
    return single, total
