"""How the cost grows with the map, the channels, the batch and the threads, as four straight lines or not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pliant.bench.gate import check, expected
from pliant.bench.implementation import Implementation
from pliant.bench.measure import FORWARD, TRAINING, Interleave
from pliant.bench.peers import PLAIN, PLIANT, Column, plain, pliant
from pliant.bench.rows import ConvRow
from pliant.bench.timing import Turn, interleave
from pliant.constants import COLOURS

COLUMNS: Mapping[str, Column] = {PLAIN: plain, PLIANT: pliant}
BASE = ConvRow(1, 128, 128, 38, 63)
THREADS = "threads"
_STYLE: dict[tuple[str, str], dict[str, Any]] = {
    (PLAIN, FORWARD): {"color": COLOURS["grey"], "linestyle": "-", "marker": "o"},
    (PLAIN, TRAINING): {"color": COLOURS["grey"], "linestyle": "--", "marker": "s"},
    (PLIANT, FORWARD): {"color": COLOURS["blue"], "linestyle": "-", "marker": "o"},
    (PLIANT, TRAINING): {"color": COLOURS["blue"], "linestyle": "--", "marker": "s"},
}


@dataclass(frozen=True)
class Point:
    """A problem, where it stands on the axis, and the threads that run it."""

    x: float
    row: ConvRow
    threads: int


@dataclass
class Line:
    """The seconds of one implementation and pass along a panel: medians of interleaved rounds."""

    name: str
    what: str
    x: list[float]
    median_seconds: list[float]


@dataclass
class Panel:
    """Lines over one quantity.

    Attributes:
        quantity: what grows.
        lines: none where something was wrong.
        wrong: the problems that did not agree with the reference, and so were not timed.
    """

    quantity: str
    lines: list[Line]
    wrong: list[str]


def points(threads: int, base: ConvRow = BASE) -> dict[str, list[Point]]:
    """The problems of the four panels, from `base` on; work is proportional to x."""
    times = (1, 2, 3, 4)
    return {
        "map size": [Point(n, replace(base, height=base.height * n), threads) for n in times],
        "channels squared": [
            Point(n**2, replace(base, channels=base.channels * n, out_channels=base.out_channels * n), threads)
            for n in times
        ],
        "batch": [Point(n, replace(base, batch=base.batch * n), threads) for n in times],
        THREADS: [Point(n, replace(base, height=base.height * 4), n) for n in _up_to(threads)],
    }


def measure_scaling(quantity: str, along: Sequence[Point], seconds: float, timed: Interleave = interleave) -> Panel:
    """Compare every point with the reference, then time them all in the same rounds, for half the seconds a pass."""
    before = torch.get_num_threads()
    made: dict[tuple[str, int], Implementation] = {}
    wrong = []
    try:
        for index, point in enumerate(along):
            tensors = point.row.tensors()
            for name, column in COLUMNS.items():
                torch.set_num_threads(point.threads)
                implementation = made[name, index] = column(point.row, tensors, point.threads)
                verdict = check(implementation, expected(point.row, tensors, ignored=implementation.ignored))
                if verdict.error > implementation.tolerance:
                    wrong.append(f"{name}, {point.row.name}: {verdict.where}, {verdict.error:.1e}")
        lines = []
        for what in (FORWARD, TRAINING) if not wrong else ():
            turns = {
                f"{name} {index}": _turn(each, what == TRAINING, along[index].threads)
                for (name, index), each in made.items()
            }
            found = timed(turns, seconds / 2)
            for name in COLUMNS:
                medians = [statistics.median(found[f"{name} {index}"]) for index in range(len(along))]
                lines.append(Line(name, what, [point.x for point in along], medians))
    finally:
        torch.set_num_threads(before)
    return Panel(quantity, lines, wrong)


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side; the path's ending gives the format.

    Costs are ratios to plain convolution's at the smallest problem, each pass to its own; along threads, how many
    times faster than with the fewest.
    """
    figure = Figure(figsize=(3.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        first = next(other for other in panel.lines if (other.name, other.what) == (PLAIN, line.what))
        if panel.quantity == THREADS:
            y = [line.median_seconds[0] / seconds for seconds in line.median_seconds]
        else:
            y = [seconds / first.median_seconds[0] for seconds in line.median_seconds]
        axes.plot(line.x, y, label=f"{line.name}, {line.what}", **_STYLE[line.name, line.what])
    axes.set_title(panel.quantity, fontsize=10)
    axes.set_xlabel("threads" if panel.quantity == THREADS else "times the smallest")
    axes.set_ylabel("times faster than with the fewest" if panel.quantity == THREADS else "smallest conv2d = 1")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _turn(implementation: Implementation, training: bool, threads: int) -> Turn:
    def turn(calls: int) -> float:
        torch.set_num_threads(threads)
        return implementation.turn(training, calls)

    return turn


def _up_to(threads: int) -> list[int]:
    """All numbers of threads where they are few, else powers of two and the most."""
    if threads <= 4:
        return list(range(1, threads + 1))
    return [*(2**power for power in range(threads.bit_length()) if 2**power < threads), threads]
