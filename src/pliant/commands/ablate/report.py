"""The results of an ablation as tables with their plots."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.bench.report import Table
from pliant.commands.ablate.grid import Cell
from pliant.commands.ablate.plots import TITLES, draw_curves, draw_tables
from pliant.commands.ablate.results import metrics_of, one_class_alone, read_cells, rows_of_tables, values_of
from pliant.outputs import Outputs
from pliant.pictures.charts import svg
from pliant.recipes.base import Recipe
from pliant.statistics import LEVEL, difference_of, mean_of

REPORT = ("ablation.md", "ablation.csv", "ablation.png", "ablation.svg", "curves.png", "curves.svg")
_ABOUT = {
    "ablation": "each network's seeds and their mean",
    "curves": "learning curves: means over the seeds, with ranges",
}


def tables(cells: Sequence[Cell], recipe: Recipe) -> list[Table]:
    """Tables 1 and 3, as far as they have rows; each compares its networks with its first."""
    metrics = metrics_of(recipe)
    main = next(iter(metrics.values()))
    head = ("", *metrics, "seeds", "difference", f"{100 * LEVEL:.0f}% interval")
    found = []
    for number, rows in rows_of_tables(cells).items():
        first = values_of(cells, rows[0], main)
        lines = []
        for variant in rows:
            values = values_of(cells, variant, main)
            spreads = [mean_of(list(values_of(cells, variant, key).values())).percent() for key in metrics.values()]
            difference = difference_of(first, values)
            compared = ("", "") if variant == rows[0] else (difference.points(), difference.interval())
            lines.append((variant.rows[number], *spreads, str(len(values)), *compared))
        found.append(Table(f"{TITLES[number]} (table {number} of the paper)", head, lines))
    return found


def write_report(outputs: Outputs) -> Path:
    """Write the tables (``ablation.md``, ``ablation.csv``) and their plot, and learning curves if there are some.

    Returns:
        The path of ``ablation.md``.
    """
    cells, recipe, asked = read_cells(outputs.folder)
    figures = {"ablation": draw_tables(cells, recipe)}
    if (curves := draw_curves(cells, recipe)) is not None:
        figures["curves"] = curves
    with outputs.writing(*REPORT) as places:
        by_name = {path.name: path for path in places}
        by_name["ablation.md"].write_text(_text(cells, recipe, asked, list(figures)), encoding="utf-8")
        by_name["ablation.csv"].write_text(_csv(cells, metrics_of(recipe)), encoding="utf-8")
        for name, figure in figures.items():
            figure.savefig(by_name[f"{name}.png"], dpi=160)
            by_name[f"{name}.svg"].write_text(svg(figure), encoding="utf-8")
    return outputs.folder / REPORT[0]


def _text(cells: Sequence[Cell], recipe: Recipe, asked: Mapping[str, Any], figures: Sequence[str]) -> str:
    records = [record for cell in cells if (record := cell.content()) is not None]
    failed = [f"{cell.title}: {why}" for cell in cells if (why := (cell.results() or {}).get("failed"))]
    splits = sorted({record["split"] for record in records if "split" in record})
    parts = [
        f"# Ablation of {asked['recipe']} on {asked['data']}",
        f"{asked['steps']} steps of {recipe.batch_size} images for every network, {asked['seeds']} seeds"
        + (f", evaluated on {', '.join(splits)} after the last step" if splits else "")
        + f". {len(records)} of {len(cells)} cells are done. In percent: mean ± standard deviation over the seeds. "
        "Differences are those of the first column from the first row, in percentage points, with Student's t interval "
        "of the pairs of equal seeds if there are two or more.",
        f"```sh\n{command(asked)}\n```",
        *(table.markdown().rstrip() for table in tables(cells, recipe)),
        *(f"![{_ABOUT[name]}]({name}.svg)" for name in figures),
        *(sentence for sentence in (one_class_alone(cells, recipe),) if sentence is not None),
        *(f"Failed: {text}." for text in failed),
        "\n".join(f"- {line}" for line in _where(records)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def command(asked: Mapping[str, Any]) -> str:
    """The command of an ablation, without the folder to write to."""
    words = ["pliant", "ablate", "--data", asked["data"], "--recipe", asked["recipe"], "--seeds", str(asked["seeds"])]
    words += ["--budget", asked["budget"]] if asked["budget"] else []
    words += ["--curve", str(asked["curve"])] if asked["curve"] else []
    words += ["--only", ",".join(asked["networks"])]
    return shlex.join([*words, *(word for text in asked["assignments"] for word in ("--set", text))])


def _where(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The versions and machines of the cells, with how many cells are of each."""
    places = [
        f"pliant {record['versions'].get('pliant', 'from its sources')} ({record['commit']}), "
        f"torch {record['versions']['torch']}, "
        f"{record['machine']}, threads: {record['versions']['threads']}, {record['date']}"
        for record in records
    ]
    return [f"{number} cell{'s' if number > 1 else ''}: {place}" for place, number in Counter(places).items()]


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
