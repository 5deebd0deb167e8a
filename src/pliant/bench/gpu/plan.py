"""Lists all steps of the campaign in the order of their value."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice

from pliant.bench.gpu import outside, programs, right, roofline, speed, training
from pliant.bench.gpu.steps import Place, Step

KINDS = ("ceilings", "right", "speed", "tuning", "training")
_FIRST_CHECKS = 6  # all but most rows, and poolings
_FIRST_SPEEDS = 24  # of the problems: bfloat16, one image and eight, offsets of a cell
_SECOND_SPEEDS = 28  # conv5 and a pyramid's maps in float16, contiguous, in batches of 32, with offsets of four cells

Ceilings = Callable[[], "roofline.Ceilings | None"]


def plan(
    place: Place, ceilings: Ceilings = lambda: None, kinds: Collection[str] = KINDS, only: str | None = None
) -> list[Step]:
    """Return the steps.

    Args:
        place: Device and size of the problems.
        ceilings: Returns the measured ceilings of the device. It is called when a step runs.
        kinds: Kinds of steps, of `KINDS`.
        only: Regular expression that is searched for in the names.

    Raises:
        ValueError: If a kind is unknown, or no name matches.
    """
    if wrong := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"steps must be of {', '.join(KINDS)}, got {', '.join(wrong)}")
    steps = [
        step for step in _all(place, ceilings) if step.kind in kinds and (only is None or re.search(only, step.name))
    ]
    if not steps:
        raise ValueError(f"no step of {', '.join(kinds)} is called like {only!r}; --list shows all")
    return steps


def _all(place: Place, ceilings: Ceilings) -> Iterator[Step]:
    speeds, trainings = speed.steps(place, ceilings), training.steps(place)
    yield roofline.step()
    checks = list(right.steps(place))
    yield from checks[:_FIRST_CHECKS]
    yield from islice(speeds, _FIRST_SPEEDS)
    yield from outside.tests()
    yield from islice(trainings, 3)
    yield from islice(speeds, _SECOND_SPEEDS)
    yield from checks[_FIRST_CHECKS:]
    yield from outside.sanitizers()
    yield from speed.steps_beside_deformops(place, ceilings)
    yield from _tunings(place)
    yield from chain(trainings, programs.steps(place), speeds)


def _tunings(place: Place) -> Iterator[Step]:
    if importlib.util.find_spec("pliant.ops.deform_conv2d.tiles") is None:
        return
    from pliant.bench.gpu import tuning

    yield from tuning.steps(place)
