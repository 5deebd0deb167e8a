"""The peers' comparison as a picture: a dot an implementation and row, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pliant.bench.measure import RowResult
from pliant.bench.peers import PLIANT
from pliant.constants import COLOURS

# Markers tell the implementations apart without colours too.
_STYLES = (
    (COLOURS["orange"], "s"),
    (COLOURS["green"], "^"),
    (COLOURS["purple"], "D"),
    (COLOURS["sky blue"], "v"),
    (COLOURS["vermilion"], "P"),
    (COLOURS["grey"], "X"),
)
_OWN = (COLOURS["blue"], "o")


def draw(rows: Sequence[RowResult], path: Path, head: str, footer: str) -> None:
    """Draw the ratios of all rows to their base, a panel a pass; lines are the quartiles within rounds.

    Args:
        rows: of the same columns.
        path: of the picture; its ending gives the format (png, pdf, svg).
        head: what the numbers in the rows' names are.
        footer: below the panels: the machine, the versions, the threads.
    """
    base, passes = rows[0].base, rows[0].passes
    figure = Figure(figsize=(4.2 * len(passes) + 1.6, 1.7 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for axes, what in zip(panels, passes, strict=True):
        _panel(axes, rows, what)
        axes.set_title(f"{what}; {base} = 1", fontsize=10)
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    panels[0].set_ylabel(head, fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(footer, fontsize=6, color="#555555", wrap=True)
    figure.savefig(path, dpi=160)


def _panel(axes: Axes, rows: Sequence[RowResult], what: str) -> None:
    others = (name for name in rows[0].outcomes if name not in (PLIANT, rows[0].base))
    styles = {PLIANT: _OWN} | dict(zip(others, _STYLES, strict=False))
    for name, (color, marker) in styles.items():
        timed = [
            (place, row.outcomes[name].ratios[what])
            for place, row in enumerate(rows)
            if what in row.outcomes[name].ratios
        ]
        if not timed:
            continue
        places, ratios = zip(*timed, strict=True)
        values = [ratio.value for ratio in ratios]
        spread = [
            [max(value - ratio.lower, 0) for value, ratio in zip(values, ratios, strict=True)],
            [max(ratio.upper - value, 0) for value, ratio in zip(values, ratios, strict=True)],
        ]
        front = 3 if name == PLIANT else 2
        axes.errorbar(values, places, xerr=spread, fmt=marker, color=color, markersize=6, label=name, zorder=front)
    axes.axvline(1, color="#000000", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("times as long (less is better)", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
