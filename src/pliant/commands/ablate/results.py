"""The results of an ablation, read from the files of its folder alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.commands.ablate.grid import Cell, Variant, cells, table_rows, variants
from pliant.recipes import find_recipe, override
from pliant.recipes.base import Recipe
from pliant.tasks.task import Ablation, task_of

PLAN = "ablation.json"


def read_cells(folder: Path) -> tuple[list[Cell], Recipe, dict[str, Any]]:
    """Read what an ablation compares from its folder, without its data.

    Returns:
        Its cells, the recipe with the changes that all networks share, and the content of ``ablation.json``.
    """
    asked: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    recipe = override(find_recipe(asked["recipe"]), asked["assignments"])
    return cells(variants(recipe, asked["networks"]), asked["seeds"], folder), recipe, asked


def metrics_of(recipe: Recipe) -> Mapping[str, str]:
    """The columns of the tables: their titles, with the keys of the results. The first one is compared and plotted."""
    return _compared(recipe).metrics


def _compared(recipe: Recipe) -> Ablation:
    ablation = task_of(recipe).ablation(recipe)
    assert ablation is not None  # `variants` has refused such a recipe
    return ablation


def values_of(cells: Sequence[Cell], variant: Variant, key: str) -> dict[int, float]:
    """The value of a metric for each seed of a variant that has one."""
    found = {cell.seed: cell.results() for cell in cells if cell.variant == variant}
    values = {seed: result[key] for seed, result in found.items() if result is not None and result.get(key) is not None}
    return {seed: float(value) for seed, value in values.items() if not math.isnan(value)}


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


def rows_of_tables(cells: Sequence[Cell]) -> dict[int, list[Variant]]:
    """The rows of each table that has some."""
    chosen = list({cell.variant.key: cell.variant for cell in cells}.values())
    return {table: rows for table in (1, 3) if (rows := table_rows(chosen, table))}
