"""Which candidates are worth a measurement: those that fit, spill nothing, and are estimated best."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pliant.bench.gpu.estimate import GPUS, Figures, Work, blocks, cost

_TRIED = 3  # times as many are compiled as are kept


class Choice(NamedTuple):
    """The candidates of a kernel on a problem."""

    about: dict[str, Any]  # `kernel`, `dtype` and `shape`, as in the shipped table
    work: Work
    tiles: Sequence[Any]
    launches: Callable[[Sequence[Any]], list[Any]]  # what launches with some tiles


def prune(
    choices: Iterable[Choice], capability: int, most: int, figures: Callable[[list[Any]], list[Figures | None]]
) -> list[dict[str, Any]]:
    """For each choice the `most` best, best first, with their figures and estimates in microseconds.

    Args:
        figures: compiles launches; None stands for one that does not compile.
    """
    return [
        {"capability": capability, **choice.about, **found}
        for choice in choices
        for found in _best(choice, capability, most, figures)
    ]


def _best(
    choice: Choice, capability: int, most: int, figures: Callable[[list[Any]], list[Figures | None]]
) -> list[dict[str, Any]]:
    gpu, kernel = GPUS[capability], choice.about["kernel"]

    def seconds(tiles: Any, found: Figures) -> float:
        return cost(kernel, choice.work, tiles).seconds(gpu, choice.work, found, tiles.stages)

    hoped = sorted(choice.tiles, key=lambda tiles: seconds(tiles, least(kernel, tiles)))[: _TRIED * most]
    compiled = zip(hoped, figures(choice.launches(hoped)), strict=True)
    fitting = [(tiles, found) for tiles, found in compiled if found and not found.spilled and blocks(found, gpu)]
    timed = [(seconds(tiles, found), tiles, found) for tiles, found in fitting]
    # Of those that are estimated alike, first who keeps more threads on a multiprocessor.
    ranked = sorted(timed, key=lambda each: (each[0], -blocks(each[2], gpu) * each[2].threads))
    return [
        {
            "tiles": tiles._asdict(),
            **found._asdict(),
            "blocks": blocks(found, gpu),
            "microseconds": round(1e6 * time, 1),
        }
        for time, tiles, found in ranked[:most]
    ]


def kept(path: Path, capability: int, about: Mapping[str, Any]) -> list[dict[str, int]]:
    """The tiles that a list has for a kernel, dtype and shape, best first; none where the list lacks them."""
    wanted = {"capability": capability, **about}
    return [each["tiles"] for each in read(path) if all(each[name] == value for name, value in wanted.items())]


@functools.cache
def read(path: Path) -> list[dict[str, Any]]:
    """A list of candidates.

    Raises:
        ValueError: if the file is none.
    """
    found = json.loads(path.read_text())
    names = {"capability", "kernel", "dtype", "shape", "tiles"}
    if not isinstance(found, list) or not all(isinstance(each, dict) and names <= set(each) for each in found):
        raise ValueError(f"{path} is no list of candidates: each has {', '.join(sorted(names))}")
    return found


def least(kernel: str, tiles: Any) -> Figures:
    """What a kernel needs at least, before it is compiled: registers for its sums."""
    sums = {
        "forward": tiles.cells * tiles.outs,
        "backward_samples": tiles.cells * tiles.channels,
        "backward_weight": tiles.outs * tiles.channels,
    }
    threads = 32 * tiles.warps
    return Figures(min(255, 40 + sums.get(kernel, 0) // threads), 0, 0, threads)
