"""Runs as the material of a comparison: their recipes, seeds and results, and whether they can be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.console import Console
from pliant.runs.folder import RunFolder
from pliant.runs.weights import read_description

# Fields that do not change the results, besides the seed.
_IRRELEVANT = ("seed", "workers", "accelerator", "checkpoint_every", "full_checkpoints")


@dataclass(frozen=True)
class RunResult:
    """A run with its results.

    Attributes:
        path: The run folder.
        description: The content of its ``recipe.json``.
        source: What the results are of, such as ``test of /data/voc``.
        values: The metrics by name, in 0..1.
    """

    path: Path
    description: dict[str, Any]
    source: str
    values: dict[str, float]

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.description["fields"]["seed"])

    @property
    def setting(self) -> dict[str, Any]:
        """The fields of the recipe that results depend on, without the seed."""
        return {name: value for name, value in self.description["fields"].items() if name not in _IRRELEVANT}


def read_results(paths: Sequence[Path], split: str | None = None, *, per_class: bool = False) -> list[RunResult]:
    """Read the results of runs on the same data.

    They are those of the evaluation that all runs have (``eval-*.json``), or those of the best validation (``val.csv``)
    if none of the runs was evaluated.

    Args:
        paths: Run folders.
        split: The split of the evaluation; None if there is only one to choose.
        per_class: Whether to include the metrics of each class, as ``CLASS METRIC``.

    Raises:
        ValueError: If a folder is no run, the runs cannot be compared, or no evaluation or several are in common.
    """
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise ValueError(f"{path} was given twice")
    descriptions = {path: RunFolder.open(path).description() for path in paths}
    _require_comparable(descriptions)
    reports = {path: _reports(path) for path in paths}
    if split is None and not any(reports.values()):
        return [RunResult(path, descriptions[path], *_best_validation(path)) for path in paths]
    names = set.intersection(*(set(found) for found in reports.values()))
    chosen = [name for name in names if split is None or name[0] == split]
    if not chosen:
        lacking = [str(path) for path in paths if not any(split in (None, name[0]) for name in reports[path])]
        what = "evaluation" if split is None else f"evaluation on {split}"
        hint = f" ({', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none)" if lacking else ""
        raise ValueError(f"the runs have no {what} in common{hint}: run pliant eval on each, with the same options")
    if len(chosen) > 1:
        raise ValueError(
            f"the runs have several evaluations in common ({'; '.join(map(_said, sorted(chosen)))}): "
            "choose a split with --split, or remove the reports that you do not mean"
        )
    return [
        RunResult(path, descriptions[path], _said(chosen[0]), _values(reports[path][chosen[0]]["results"], per_class))
        for path in paths
    ]


def _require_comparable(descriptions: Mapping[Path, Mapping[str, Any]]) -> None:
    (first, known), *others = descriptions.items()
    for path, other in others:
        for name, what in (
            ("kind", "are of different kinds"),
            ("classes", "know different classes"),
            ("data", "were trained on different data"),
            ("splits", "were trained on different splits"),
        ):
            ours, theirs = (_comparable(each, name) for each in (known, other))
            if ours != theirs:
                raise ValueError(
                    f"{first} and {path} cannot be compared, because they {what}: {_text(ours)}, and {_text(theirs)}"
                )

    made = {path: RunFolder(path).data().get("made") or {} for path in descriptions}
    for path in made:
        if made[path] != made[first]:
            seeds = [descriptions[run]["fields"].get("split_seed") for run in (first, path)]
            raise ValueError(
                f"{first} and {path} cannot be compared, because their splits were made of other images, with "
                f"split_seed={seeds[0]} and split_seed={seeds[1]}"
            )


def _text(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def _comparable(description: Mapping[str, Any], name: str) -> Any:
    value = description[name]
    if name == "data":
        return str(Path(value).resolve())
    if name == "splits":  # what a run is evaluated on is in its report
        return {purpose: split for purpose, split in value.items() if purpose != "test"}
    return ", ".join(value) if isinstance(value, list) else value


Key = tuple[str, str, str]
"""Split, data folder and procedure of an evaluation."""


def _said(key: Key) -> str:
    split, data, procedure = key
    used = {name: value for name, value in json.loads(procedure).items() if value}
    return f"{split} of {data}" + "".join(f", {name} {value}" for name, value in used.items())


def _reports(run: Path) -> dict[Key, dict[str, Any]]:
    """The evaluations of the weights of a run; a report on earlier weights is left out, which is said."""
    found: dict[Key, dict[str, Any]] = {}
    step = read_description(RunFolder(run).weights())["step"]
    for path in sorted(run.glob("eval-*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(report, dict) or "results" not in report or "procedure" not in report:
            continue
        if report.get("step") != step:
            Console(stderr=True).print(
                f"{path} is of step {report.get('step')}, and the weights are now of step {step}: it is left out",
                style="yellow",
            )
            continue
        found[(report["split"], report["data"], json.dumps(report["procedure"], sort_keys=True))] = report
    return found


def _values(results: Mapping[str, Any], per_class: bool) -> dict[str, float]:
    values = {name: _number(value) for name, value in results.items() if not isinstance(value, Mapping)}
    for label, metrics in results.get("per_class", {}).items() if per_class else ():
        values |= {f"{label} {name}": _number(value) for name, value in metrics.items()}
    return values


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _best_validation(run: Path) -> tuple[str, dict[str, float]]:
    """The row of ``val.csv`` that the best weights are of."""
    path = run / "val.csv"
    if not path.is_file():
        raise ValueError(f"{run} has no results to compare: neither an evaluation (pliant eval {run}) nor a validation")
    step = read_description(RunFolder(run).weights())["step"]
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == step]
    if not rows:
        raise ValueError(f"{path} has no row for step {step}, which the weights are of")
    values = {name: float(value) for name, value in rows[0].items() if name != "step"}
    return "the best validation, on which the weights were chosen", values
