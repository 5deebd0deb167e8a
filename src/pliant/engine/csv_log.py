"""Losses and results as CSV: appended row by row, and exact after an interruption."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger

from pliant.runs.files import replacing

_VALIDATION = "val/"


class CSVLog(Logger):
    """Writes ``train.csv`` and, for metrics called ``val/...``, ``val.csv``; one row a step.

    Numbers are written so that they read back exactly. Rows after the step a run resumes from, and a last
    row that was cut off, are taken out first: no step is missing or there twice.

    Args:
        folder: Folder of the files.
        resume_step: Number of steps before this session; 0 for a new run.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__()
        self._tables = {
            "train": _Table(folder / "train.csv", resume_step),
            "val": _Table(folder / "val.csv", resume_step),
        }

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step is None:
            raise ValueError("a row needs the step it belongs to")
        validation = {
            key.removeprefix(_VALIDATION): value for key, value in metrics.items() if key.startswith(_VALIDATION)
        }
        training = {key: value for key, value in metrics.items() if not key.startswith(_VALIDATION)}
        for name, values in (("train", training), ("val", validation)):
            if values:
                self._tables[name].append(step, values)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in ``recipe.json``."""


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of ``train.csv`` or ``val.csv`` by name, ``step`` first; empty if there is no complete row.

    A last row that was cut off is left out.

    Raises:
        ValueError: If the file is not such a table.
    """
    if not path.is_file():
        return {}
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    head, *rows = list(csv.reader(io.StringIO(whole))) or [[]]
    if not rows:
        return {}
    try:
        values = np.array(rows, dtype=float)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}") from error
    return dict(zip(head, values.T, strict=True))


class _Table:
    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.is_file():
            self._truncate(resume_step)

    def _truncate(self, resume_step: int) -> None:
        # What follows the last newline is a row that was cut off.
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = list(csv.reader(io.StringIO(whole)))
        kept = [row for row in rows[1:] if int(row[0]) <= resume_step]
        if not kept:
            self.path.unlink()
            return
        self.columns = rows[0][1:]
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([rows[0], *kept])

    def append(self, step: int, values: dict[str, float]) -> None:
        new = not self.columns
        if new:
            self.columns = list(values)
        if set(values) != set(self.columns):
            raise ValueError(
                f"{self.path} has the columns {', '.join(self.columns)}; got {', '.join(values)} for step {step}"
            )
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", *self.columns])
            writer.writerow([step, *(repr(float(values[column])) for column in self.columns)])
