"""The tables of docs/recipes.md are the recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pliant.recipes import find_recipe, recipe_names

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def rows() -> Iterator[tuple[str, dict[str, str]]]:
    """Each row that begins with a recipe's name: the name, and its cells by the names of their columns."""
    header: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[:1] == ["recipe"]:
            header = cells
        elif cells and cells[0].startswith("`"):
            yield cells[0].strip("`"), dict(zip(header, cells, strict=True))


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) and value not in (value // 1, 0.000125) else str(value)


@pytest.mark.parametrize(("name", "cells"), list(rows()), ids=lambda value: value if isinstance(value, str) else "")
def test_row(name: str, cells: dict[str, str]) -> None:
    recipe = find_recipe(name)
    fields = {field.name for field in dataclasses.fields(recipe)}
    compared = [column for column in cells if column not in ("recipe", "source") and cells[column]]
    assert set(compared) <= fields
    assert len(compared) >= 3
    assert cells["source"]
    assert {column: shown(getattr(recipe, column)) for column in compared} == {
        column: cells[column] for column in compared
    }


def test_every_recipe_of_the_data_sets_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    bases = {name.split("_deform")[0].split("_authors")[0] for name in recipe_names()}
    missing = {name for name in bases if not name.startswith("demo") and f"`{name}`" not in text}
    assert not missing
