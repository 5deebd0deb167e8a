"""The tables of a run: for the terminal, or as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pliant.bench.measure import FORWARD, TRAINING, Outcome, RowResult
from pliant.bench.memory import MemoryResult
from pliant.bench.timing import Ratio
from pliant.console import Console
from pliant.console import Table as ShownTable


@dataclass
class Table:
    """A title, a line of headings, lines of cells, and notes below."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print for a terminal."""
        shown = ShownTable(title=self.title, title_justify="left", title_style="bold")
        for index, name in enumerate(self.head):
            shown.add_column(name, justify="left" if index == 0 else "right")
        for line in self.lines:
            shown.add_row(*line)
        console.print(shown)
        for note in self.notes:
            console.print(note, style="dim")
        console.print()

    def markdown(self) -> str:
        """The table as Markdown, its title bold above, its notes below."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, rule, *self.lines))
        return "\n\n".join((f"**{self.title}**", table, *self.notes)) + "\n"


def summary(about: Mapping[str, Any]) -> str:
    """The machine, and what ran on it, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['cpu']}, threads: {about['threads']}, Pliant's kernels: {about['kernels']}; {versions}"


def row_tables(title: str, head: str, rows: Sequence[RowResult], headings: Mapping[str, str]) -> list[Table]:
    """One table a pass, of the ratios.

    Args:
        title: what the rows are.
        head: what the numbers in their names are.
        rows: of the same columns.
        headings: what columns are called, where not by their names.
    """
    tables = []
    for what in rows[0].passes:
        columns = [name for name in rows[0].outcomes if what == FORWARD or _trains(rows, name)]
        names = [head, *(headings.get(name, name) for name in columns if name != rows[0].base)]
        lines = [[row.name, *(_cell(row.outcomes[name], what) for name in columns if name != row.base)] for row in rows]
        tables.append(Table(f"{title}, {what}; {rows[0].base} = 1", names, lines))
    tables[-1].notes = _notes(rows)
    return tables


def memory_tables(head: str, rows: Sequence[MemoryResult]) -> list[Table]:
    """One table a pass, in MiB."""
    tables = []
    for what, needs in rows[0].needs.items():
        lines = [[row.name, *(f"{max(0, row.needs[what][name]) / 2**20:.1f}" for name in needs)] for row in rows]
        title = f"Memory beyond the tensors that go in and come out, {what}, MiB"
        tables.append(Table(title, [head, *needs], lines))
    return tables


def ratio_cell(ratio: Ratio) -> str:
    """Such as `1.21 (1.19 to 1.24)`: the median of the rounds' ratios, and their quartiles."""
    return f"{_digits(ratio.value)} ({_digits(ratio.lower)} to {_digits(ratio.upper)})"


def _digits(value: float) -> str:
    """At most three digits, at least one decimal of small values."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{decimals}f}"


def _cell(outcome: Outcome, what: str) -> str:
    if outcome.status == "wrong":
        return f"wrong: {_error(outcome)}"
    return ratio_cell(outcome.ratios[what]) if what in outcome.ratios else "-"


def _error(outcome: Outcome) -> str:
    return "no number" if outcome.error is None else f"{outcome.error:.1e}"


def _trains(rows: Sequence[RowResult], name: str) -> bool:
    return any(TRAINING in row.outcomes[name].ratios or row.outcomes[name].status != "right" for row in rows)


def _notes(rows: Sequence[RowResult]) -> list[str]:
    reasons = dict.fromkeys(
        f"{name}: {outcome.reason}." for row in rows for name, outcome in row.outcomes.items() if outcome.reason
    )
    errors = [
        f"{name} is wrong at {row.name}: {outcome.where} differs from the float64 reference by {_error(outcome)} "
        f"(of its largest value), more than {outcome.tolerance:.0e}."
        for row in rows
        for name, outcome in row.outcomes.items()
        if outcome.status == "wrong"
    ]
    compared = {
        name: outcome.tolerance
        for row in rows
        for name, outcome in row.outcomes.items()
        if outcome.tolerance is not None
    }
    limits = ", ".join(
        f"{tolerance:.0e} ({', '.join(name for name in compared if compared[name] == tolerance)})"
        for tolerance in dict.fromkeys(compared.values())
    )
    explained = (
        "Medians of the ratios within rounds, in brackets their quartiles. Compared before they were timed; "
        f"largest difference allowed, as a part of the largest value: {limits}."
    )
    return [explained, *reasons, *errors]
