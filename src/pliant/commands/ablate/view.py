"""The progress of an ablation while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pliant.commands.ablate.grid import Cell
from pliant.commands.ablate.results import metrics_of, values_of
from pliant.console import Progress, Table
from pliant.recipes.base import Recipe
from pliant.statistics import mean_of


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
            sum(self.done.values()), doing="; ".join(f"{self._place(each)} {each.title}" for each in running)
        )

    def finished(self, cell: Cell) -> None:
        """Show that a cell is finished."""
        self.done[cell.record] = self.steps
        self.task.update(sum(self.done.values()))
        if not self.progress.interactive:
            results = cell.results() or {}
            outcome = f"{self.title} {100 * results[self.key]:.1f}" if self.key in results else results.get("failed")
            self.progress.console.print(f"{self._place(cell)} {cell.title}: {outcome}")

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
            values = values_of(self.cells, own[0].variant, self.key)
            table.add_row(own[0].variant.title, *shown, mean_of(list(values.values())).percent())
        return table

    def _value(self, cell: Cell) -> str:
        results = cell.results()
        if results is None:
            return ""
        value = results.get(self.key)
        return "failed" if value is None else f"{100 * value:.1f}"
