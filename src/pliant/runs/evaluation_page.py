"""The page of `pliant eval`: what was evaluated, the results of each class, and what the task adds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pliant.data import ImageSet
from pliant.pictures.report import Table, write_report
from pliant.runs.evaluation import Evaluation
from pliant.runs.trained import Trained

PAGE = ".html"


def write_page(path: Path, trained: Trained, dataset: ImageSet, evaluation: Evaluation) -> None:
    """Write the page of an evaluation.

    Args:
        path: The file to write.
        trained: The network.
        dataset: The data set; it has annotations.
        evaluation: The outcome.
    """
    report, results, task = evaluation.report, evaluation.results, trained.task
    evidence = task.evidence(evaluation.module, dataset, evaluation.tested)
    headings = ["class", *(name.replace("_", " ") for name in task.columns), *evidence.columns]
    rows = rows_of_classes(results, task.columns)
    rows[0] += [""] * len(evidence.columns)
    for place, row in enumerate(rows[1:]):
        row += [_cell(values[place]) for values in evidence.columns.values()]
    note = " ".join(filter(None, ("In percent, except for whole numbers.", evidence.note, *task.remarks(results))))
    write_report(
        path,
        f"{trained.name} on {report['split']}",
        {
            "weights": f"{report['weights']}, after {report['step']} steps",
            "data": report["data"],
            "split": f"{report['split']}, {report['images']} images",
            "left out": ", ".join(report["skipped"]) or "no image",
            "problems": ", ".join(f"{number} x {kind}" for kind, number in report["problems"].items()) or "none",
            "procedure": _procedure(report["procedure"]),
        },
        [Table("Results of each class", note, headings, rows), *evidence.sections],
    )


def rows_of_classes(results: Mapping[str, Any], columns: Mapping[str, str]) -> list[list[str]]:
    """The results as rows of text, in percent: all classes together, then each with its name first."""
    together = ["all", *(_percent(results.get(key)) for key in columns.values())]
    each = ([name, *(_percent(values.get(key)) for key in columns)] for name, values in results["per_class"].items())
    return [together, *each]


def _procedure(options: Mapping[str, Any]) -> str:
    used = {name.replace("_", " "): value for name, value in options.items() if value}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in used.items()) or "a single pass"


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f}"


def _cell(value: float) -> str:
    """A share in percent, or a whole number."""
    return f"{value:,}" if isinstance(value, int) else _percent(value)
