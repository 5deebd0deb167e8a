"""`pliant compare`: means over seeds, and differences between settings with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pliant.bench.report import Table
from pliant.console import Console
from pliant.outputs import Outputs
from pliant.runs.comparison import RunResult, read_results
from pliant.runs.files import write_json
from pliant.statistics import LEVEL, difference_of, mean_of

_MOST_FIELDS = 4  # in the name of a group


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        name: What tells it from the other groups.
        runs: The runs by seed.
    """

    name: str
    runs: dict[int, RunResult]

    def values(self, metric: str) -> dict[int, float]:
        """A metric of each run, by seed."""
        return {seed: run.values.get(metric, math.nan) for seed, run in self.runs.items()}


def compare(
    paths: Sequence[Path],
    *,
    split: str | None = None,
    metrics: Sequence[str] = (),
    per_class: bool = False,
    markdown: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Group runs that differ only in their seed, and print the means of the groups and their differences.

    The first group is that of the first run; the others are compared with it. Fields that results do not depend on,
    such as the number of workers, may differ within a group.

    Args:
        paths: Run folders.
        split: The split of the evaluation; None if the runs have only one in common.
        metrics: The metrics to compare; all by default.
        per_class: Whether to compare the metrics of each class too.
        markdown: Whether to print the tables as Markdown.
        out: A JSON file to write; None for none.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: If the runs cannot be compared, see `pliant.runs.comparison.read_results`; if two of them are the
            same training; or if a metric is unknown.
    """
    files = None if out is None else Outputs.file(out)
    results = read_results(paths, split, per_class=per_class or any(" " in name for name in metrics))
    groups = group_by_setting(results)
    known = list(dict.fromkeys(name for run in results for name in run.values))
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise ValueError(f"the results have no metric {', '.join(unknown)}; they have {', '.join(known)}")
    chosen = list(metrics) or known
    source = results[0].source
    tables = [_means(groups, chosen, source)]
    if len(groups) > 1:
        tables.append(_differences(groups, chosen))
    console = Console()
    for table in tables:
        if markdown:
            print(table.markdown())
        else:
            table.show(console)
    content = _content(groups, chosen, source)
    if files is not None and out is not None:
        with files.writing(out.name) as (place,):
            write_json(place, content)
        Console(stderr=True).print(f"Written to {out}")
    return content


def group_by_setting(results: Sequence[RunResult]) -> list[Group]:
    """Group runs by all fields that their results depend on, in the order of the runs.

    Raises:
        ValueError: If two runs of a group have the same seed.
    """
    settings: list[dict[str, Any]] = []
    members: list[dict[int, RunResult]] = []
    for run in results:
        if run.setting not in settings:
            settings.append(run.setting)
            members.append({})
        runs = members[settings.index(run.setting)]
        if run.seed in runs:
            raise ValueError(
                f"{runs[run.seed].path} and {run.path} are the same training with the same seed {run.seed}; "
                "leave one out"
            )
        runs[run.seed] = run
    return [Group(name, runs) for name, runs in zip(_names(settings, members), members, strict=True)]


def _names(settings: Sequence[Mapping[str, Any]], members: Sequence[Mapping[int, RunResult]]) -> list[str]:
    """The names of the recipes if they differ, else the fields that do."""
    recipes = [str(next(iter(runs.values())).description["recipe"]) for runs in members]
    if len(set(recipes)) == len(settings):
        return recipes
    fields = list(dict.fromkeys(name for setting in settings for name in setting))
    differ = [name for name in fields if any(each.get(name) != settings[0].get(name) for each in settings)]
    more = f" and {len(differ) - _MOST_FIELDS} more" if len(differ) > _MOST_FIELDS else ""
    names = [", ".join(f"{name}={_text(each.get(name))}" for name in differ[:_MOST_FIELDS]) + more for each in settings]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]


def _text(value: Any) -> str:
    return (
        ",".join(map(str, value))
        if isinstance(value, list)
        else str(value).lower()
        if value in (True, False)
        else f"{value}"
    )


def _means(groups: Sequence[Group], metrics: Sequence[str], source: str) -> Table:
    lines = [
        (
            group.name,
            ", ".join(map(str, sorted(group.runs))),
            *(mean_of(list(group.values(metric).values())).percent() for metric in metrics),
        )
        for group in groups
    ]
    note = "Mean and sample standard deviation over the seeds."
    return Table(f"Results on {source}, in percent", ("runs", "seeds", *metrics), lines, [note])


def _differences(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    first, *others = groups
    lines = []
    kinds = set()
    for group in others:
        for metric in metrics:
            found = difference_of(first.values(metric), group.values(metric))
            kinds.add(found.paired)
            pairs = "1 pair" if found.number == 1 else f"{found.number} pairs"
            kind = pairs if found.paired else f"{len(first.runs)} and {len(group.runs)} runs"
            lines.append((group.name, metric, found.points(), found.interval(), kind))
    notes = []
    if True in kinds:
        notes.append("Pairs: runs of the same seed; Student's t interval of their differences (scipy.stats.ttest_rel).")
    if False in kinds:
        notes.append(
            "Runs: too few seeds in common; Welch's t interval (scipy.stats.ttest_ind), if both have two runs."
        )
    notes.append(
        "Each interval is for one comparison: of twenty, one misses the true difference on average. An interval that "
        "contains 0 shows no difference."
    )
    columns = ("runs", "metric", "difference", f"{100 * LEVEL:.0f} % interval", "of")
    return Table(f"Differences from {first.name}, in percentage points", columns, lines, notes)


def _content(groups: Sequence[Group], metrics: Sequence[str], source: str) -> dict[str, Any]:
    first = groups[0]
    return {
        "source": source,
        "level": LEVEL,
        "groups": [
            {
                "name": group.name,
                "recipe": next(iter(group.runs.values())).description["recipe"],
                "runs": {str(seed): str(run.path) for seed, run in sorted(group.runs.items())},
                "metrics": {
                    metric: {"values": {str(s): v for s, v in group.values(metric).items()}}
                    | asdict(mean_of(list(group.values(metric).values())))
                    for metric in metrics
                },
                "differences": {}
                if group is first
                else {metric: asdict(difference_of(first.values(metric), group.values(metric))) for metric in metrics},
            }
            for group in groups
        ],
    }
