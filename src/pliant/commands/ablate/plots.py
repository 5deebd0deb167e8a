"""Plots of an ablation: its tables with every seed, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pliant.commands.ablate.grid import Cell
from pliant.commands.ablate.results import metrics_of, rows_of_tables, values_of
from pliant.constants import COLOURS
from pliant.recipes.base import Recipe

TITLES = {1: "Deformable layers", 3: "Dilation and deformation"}
_LINES = ("black", "orange", "sky blue", "green", "purple", "blue", "vermilion", "grey", "violet", "yellow")


def draw_tables(cells: Sequence[Cell], recipe: Recipe) -> Figure:
    """Plot the tables side by side on one scale: a row for each network, a dot for each seed, a bar at the mean."""
    title, key = next(iter(metrics_of(recipe).items()))
    rows = rows_of_tables(cells)
    figure = Figure(figsize=(9, 1.2 + 0.42 * max(map(len, rows.values()))), layout="constrained")
    axes = figure.subplots(1, len(rows), sharex=True, squeeze=False)[0]
    for axis, (table, chosen) in zip(axes, rows.items(), strict=True):
        for place, variant in enumerate(chosen):
            values = [100 * value for value in values_of(cells, variant, key).values()]
            axis.scatter(values, [place] * len(values), s=22, color=COLOURS["sky blue"], zorder=2)
            if values:
                colour = COLOURS["vermilion"]
                axis.scatter(np.mean(values), place, s=260, marker="|", color=colour, linewidths=2.5, zorder=3)
        axis.set_yticks(range(len(chosen)), [variant.rows[table] for variant in chosen])
        axis.set_ylim(len(chosen) - 0.5, -0.5)
        axis.set_title(TITLES[table], fontsize=10)
        axis.set_xlabel(f"{title} (%): dots are seeds, bars their means", fontsize=8)
        _tidy(axis, "x")
    return figure


def draw_curves(cells: Sequence[Cell], recipe: Recipe) -> Figure | None:
    """Plot the main metric over the steps, and the mean size of the offsets below: means over the seeds, with ranges.

    Returns:
        The plot; None if no cell has a curve.
    """
    title, key = next(iter(metrics_of(recipe).items()))
    panels = [
        (label, found, factor)
        for label, name, factor in ((f"{title} (%)", key, 100), ("mean offset (cells)", "mean_offset", 1))
        if (found := _curves(cells, name))
    ]
    if not panels:
        return None
    figure = Figure(figsize=(9, 0.5 + 3 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    colours = dict(zip(panels[0][1], (COLOURS[name] for name in _LINES), strict=False))
    for axis, (label, found, factor) in zip(axes, panels, strict=True):
        for variant_title, (steps, values) in found.items():
            colour = colours[variant_title]
            shown = factor * values
            axis.plot(steps, shown.mean(0), color=colour, linewidth=1.8, marker="o", markersize=3, label=variant_title)
            axis.fill_between(steps, shown.min(0), shown.max(0), color=colour, alpha=0.15, linewidth=0)
        axis.set_ylabel(label)
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        _tidy(axis, "both")
    axes[-1].set_xlabel("step")
    return figure


def _curves(cells: Sequence[Cell], key: str) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """For each network with curves: the steps `[N]`, and the values `[S, N]` of its `S` finished seeds."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    names = list(dict.fromkeys(cell.variant.title for cell in cells))
    for name in names:
        points = [
            [(point["step"], point[key]) for point in (cell.content() or {}).get("curve", []) if key in point]
            for cell in cells
            if cell.variant.title == name
        ]
        full = [each for each in points if each and len(each) == max(map(len, points))]
        if full:
            table = np.array(full)
            found[name] = (table[0, :, 0], table[:, :, 1])
    return found


def _tidy(axis: Axes, grid: Literal["x", "both"]) -> None:
    axis.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
