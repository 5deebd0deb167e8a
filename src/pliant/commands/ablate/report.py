"""The progress of an ablation while it runs, and its results as tables and a plot."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import pliant
from pliant.commands.ablate.grid import Cell, Variant, table_rows
from pliant.console import Progress, Table
from pliant.outputs import Outputs
from pliant.recipes.base import Recipe
from pliant.tasks.task import Ablation, task_of

TITLES = {1: "Deformable layers", 3: "Dilation and deformation"}


def metrics_of(recipe: Recipe) -> Mapping[str, str]:
    """The columns of the tables: their titles, with the keys of the results. The first one is plotted."""
    return _compared(recipe).metrics


def _compared(recipe: Recipe) -> Ablation:
    ablation = task_of(recipe).ablation(recipe)
    assert ablation is not None  # `variants` has refused such a recipe
    return ablation


def percentages(cells: Sequence[Cell], variant: Variant, key: str) -> list[float]:
    """The value of a metric for each seed of a variant that has one, in percent."""
    found = [cell.results() for cell in cells if cell.variant == variant]
    values = [float(result[key]) for result in found if result is not None and result.get(key) is not None]
    return [100 * value for value in values if not math.isnan(value)]


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean of values, with their sample standard deviation if there are several; empty if there are none."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def one_class_alone(cells: Sequence[Cell], recipe: Recipe) -> str | None:
    """A warning if no network finds more than one of several classes, so that the tables compare nothing; else None."""
    key = _compared(recipe).of_class
    done = [classes for cell in cells if len(classes := (cell.results() or {}).get("per_class", {})) > 1]
    found = [{name for name, values in classes.items() if (values.get(key) or 0) > 0} for classes in done]
    if not found or any(len(names) > 1 for names in found):
        return None
    names = sorted(set().union(*found))
    which = f"{' or '.join(names)} alone has" if names else "no class has"
    metric = key.replace("_", " ")
    return f"In every cell {which} {metric} above 0, so these tables compare nothing: train for more steps."


class AblationView:
    """Shows the table as it fills, and the progress over all cells; without a terminal, prints a line for each cell."""

    def __init__(self, cells: Sequence[Cell], recipe: Recipe) -> None:
        self.cells = cells
        self.done = {cell.record: 0 for cell in cells}
        self.steps = recipe.max_steps
        self.title, self.key = next(iter(metrics_of(recipe).items()))
        self.progress = Progress(above=self._table)
        self.task = self.progress.task("", len(cells) * self.steps)

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)

    def stepped(self, cell: Cell, step: int) -> None:
        """Show the number of finished steps of a cell."""
        running = [each for each in self.cells if 0 < self.done[each.record] < self.steps or each == cell]
        self.done[cell.record] = step
        self.task.update(
            sum(self.done.values()), doing="; ".join(f"{self._place(each)} {_name(each)}" for each in running)
        )

    def finished(self, cell: Cell) -> None:
        """Show that a cell is finished."""
        self.done[cell.record] = self.steps
        self.task.update(sum(self.done.values()))
        if not self.progress.interactive:
            results = cell.results() or {}
            outcome = f"{self.title} {100 * results[self.key]:.1f}" if self.key in results else results.get("failed")
            self.progress.console.print(f"{self._place(cell)} {_name(cell)}: {outcome}")

    def _place(self, cell: Cell) -> str:
        return f"{self.cells.index(cell) + 1}/{len(self.cells)}"

    def _table(self) -> Table:
        table = Table("network", title=f"{self.title}, in percent", title_justify="left")
        seeds = sorted({cell.seed for cell in self.cells})
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        table.add_column("mean", justify="right")
        variants = list(dict.fromkeys(cell.variant.key for cell in self.cells))
        for key in variants:
            own = {cell.seed: cell for cell in self.cells if cell.variant.key == key}
            shown = [self._value(own[seed]) for seed in seeds]
            values = percentages(list(own.values()), own[0].variant, self.key)
            table.add_row(_title(own[0].variant), *shown, mean_and_spread(values))
        return table

    def _value(self, cell: Cell) -> str:
        results = cell.results()
        if results is None:
            return ""
        value = results.get(self.key)
        return "failed" if value is None else f"{100 * value:.1f}"


REPORT = ("ablation.md", "ablation.csv", "ablation.png", "ablation.svg")


def write_report(outputs: Outputs, cells: Sequence[Cell], split: str, recipe: Recipe, asked: Mapping[str, Any]) -> Path:
    """Write ``ablation.md``, ``ablation.csv``, ``ablation.png`` and ``ablation.svg``.

    Returns:
        The path of ``ablation.md``.
    """
    with outputs.writing(*REPORT) as (markdown, table, *pictures):
        markdown.write_text(_markdown(cells, split, recipe, asked), encoding="utf-8")
        table.write_text(_csv(cells, metrics_of(recipe)), encoding="utf-8")
        for picture in pictures:
            _draw(cells, recipe).savefig(picture, dpi=160)
    return outputs.folder / REPORT[0]


def _markdown(cells: Sequence[Cell], split: str, recipe: Recipe, asked: Mapping[str, Any]) -> str:
    done = sum(cell.results() is not None for cell in cells)
    failed = [f"{_name(cell)}: {results['failed']}" for cell in cells if "failed" in (results := cell.results() or {})]
    set_to = " ".join(f"--set {text}" for text in asked["assignments"])
    lines = [
        f"# Ablation of {asked['recipe']} on {asked['data']}",
        "",
        f"{asked['steps']} steps of {recipe.batch_size} images for every network, {asked['seeds']} seeds, evaluated on "
        f"{split} after the last step. In percent: mean ± standard deviation over the seeds. "
        f"{done} of {len(cells)} cells are done. {set_to}",
    ]
    for table, rows in _tables(cells).items():
        lines += ["", f"## {TITLES[table]} (table {table} of the paper)", ""]
        lines += [
            f"| | {' | '.join(metrics_of(recipe))} | seeds |",
            "| --- |" + " --- |" * (len(metrics_of(recipe)) + 1),
        ]
        for variant in rows:
            values = [percentages(cells, variant, key) for key in metrics_of(recipe).values()]
            lines.append(f"| {variant.rows[table]} | {' | '.join(map(mean_and_spread, values))} | {len(values[0])} |")
    lines += ["", "![each network's seeds and their mean](ablation.png)", ""]
    lines += [sentence for sentence in (one_class_alone(cells, recipe),) if sentence is not None]
    lines += [f"Failed: {text}." for text in failed]
    lines += [f"pliant {pliant.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads.", ""]
    return "\n".join(lines)


def _csv(cells: Sequence[Cell], metrics: Mapping[str, str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["network", "seed", *metrics.values(), "failed"])
    for cell in cells:
        results = cell.results()
        if results is not None:
            values = [results.get(key, "") for key in metrics.values()]
            writer.writerow([cell.variant.key, cell.seed, *values, results.get("failed", "")])
    return text.getvalue()


def _draw(cells: Sequence[Cell], recipe: Recipe) -> Figure:
    """Plot the tables side by side on one scale: a row for each network, a dot for each seed, a bar at the mean."""
    title, key = next(iter(metrics_of(recipe).items()))
    rows = _tables(cells)
    figure = Figure(figsize=(9, 1.2 + 0.42 * max(map(len, rows.values()))), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (table, chosen) in zip(
        figure.subplots(1, len(rows), sharex=True, squeeze=False)[0], rows.items(), strict=True
    ):
        for place, variant in enumerate(chosen):
            values = percentages(cells, variant, key)
            axis.scatter(values, [place] * len(values), s=22, color="#56B4E9", zorder=2)
            if values:
                axis.scatter(
                    statistics.mean(values), place, s=260, marker="|", color="#D55E00", linewidths=2.5, zorder=3
                )
        axis.set_yticks(range(len(chosen)), [variant.rows[table] for variant in chosen])
        axis.set_ylim(len(chosen) - 0.5, -0.5)
        axis.set_title(TITLES[table], fontsize=10)
        axis.set_xlabel(f"{title} (%): dots are seeds, bars their means", fontsize=8)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _tables(cells: Sequence[Cell]) -> dict[int, list[Variant]]:
    """The rows of each table that has some."""
    chosen = list({cell.variant.key: cell.variant for cell in cells}.values())
    return {table: rows for table in (1, 3) if (rows := table_rows(chosen, table))}


def _name(cell: Cell) -> str:
    return f"{_title(cell.variant)}, seed {cell.seed}"


def _title(variant: Variant) -> str:
    if 3 in variant.rows:
        return variant.rows[3]
    return f"{variant.rows[1]} deformable layer{'s' if variant.rows[1] != '1' else ''}"
