"""The networks that an ablation compares: those of the paper's tables 1 and 3, each with several seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.recipes.base import Recipe
from pliant.tasks.task import task_of

LAYERS = (0, 1, 2, 3, 6)
DILATIONS = (2, 4, 6, 8)


@dataclass(frozen=True)
class Variant:
    """A network of the tables.

    Attributes:
        key: Its name in the names of folders.
        rows: Its name in each table that it is in, by the table's number (1 or 3).
        changes: The fields of the recipe that it changes.
    """

    key: str
    rows: dict[int, str]
    changes: dict[str, Any]

    @property
    def title(self) -> str:
        """Its name outside the tables."""
        if 3 in self.rows:
            return self.rows[3]
        return f"{self.rows[1]} deformable layer{'s' if self.rows[1] != '1' else ''}"


@dataclass(frozen=True)
class Cell:
    """A variant with a seed.

    Attributes:
        variant: The network.
        seed: The seed of its initial weights and batches.
        run: The run folder in which it is trained.
        record: The file of its results, which is small and complete: with it, the run folder is no longer needed.
    """

    variant: Variant
    seed: int
    run: Path
    record: Path

    @property
    def title(self) -> str:
        """The network and the seed."""
        return f"{self.variant.title}, seed {self.seed}"

    def content(self) -> dict[str, Any] | None:
        """The content of its record; None if the cell is not finished."""
        if not self.record.is_file():
            return None
        content: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return content

    def results(self) -> dict[str, Any] | None:
        """Its results, or ``{"failed": why}``; None if the cell is not finished."""
        content = self.content()
        return None if content is None else content.get("results", content)


def variants(recipe: Recipe, only: Sequence[str] = ()) -> list[Variant]:
    """The networks of the tables for a recipe: ten if its network has RoI pooling, eight otherwise.

    The recipe's dilation is that of the plain network and of those with deformable layers. If the recipe freezes conv4,
    the network with deformable layers in conv4 is left out.

    Args:
        recipe: The recipe.
        only: Keys of the networks to keep; empty for all.

    Raises:
        ValueError: If the recipe's network is not in the paper's tables, or a key is unknown.
    """
    ablation = task_of(recipe).ablation(recipe)
    if ablation is None:
        raise ValueError("the paper's tables compare networks of DeepLab, class-aware RPN, Faster R-CNN and R-FCN")
    dilation = recipe.dilation
    plain: dict[str, Any] = {"deform_layers": 0, "dilation": dilation}
    plain |= {"deform_roi": False} if ablation.pooled else {}
    in_both_tables = {0: f"dilation {dilation}", 3: "deformable convolution"}
    found = []
    for number in LAYERS[:-1] if recipe.freeze_below == "conv5" else LAYERS:
        rows = {1: str(number)} | ({3: in_both_tables[number]} if number in in_both_tables else {})
        found.append(Variant(f"layers-{number}", rows, plain | {"deform_layers": number}))
    for other in DILATIONS:
        if other != dilation:
            found.append(Variant(f"dilation-{other}", {3: f"dilation {other}"}, plain | {"dilation": other}))
    if ablation.pooled:
        found.append(Variant("roi", {3: "deformable RoI pooling"}, plain | {"deform_roi": True}))
        found.append(Variant("both", {3: "both"}, plain | {"deform_layers": 3, "deform_roi": True}))
    keys = [variant.key for variant in found]
    if unknown := [key for key in only if key not in keys]:
        raise ValueError(f"there is no network {unknown[0]!r} to compare; networks: {', '.join(keys)}")
    return [variant for variant in found if not only or variant.key in only]


def cells(chosen: Sequence[Variant], seeds: int, folder: Path) -> list[Cell]:
    """The cells in the order in which they run: all variants with the first seed, then all with the next."""
    names = [(variant, seed, f"{variant.key}_seed{seed}") for seed in range(seeds) for variant in chosen]
    return [
        Cell(variant, seed, folder / "runs" / name, folder / "cells" / f"{name}.json") for variant, seed, name in names
    ]


def table_rows(chosen: Sequence[Variant], table: int) -> list[Variant]:
    """The variants of table 1 or 3, in the order of its rows; the plain network comes first."""
    if table == 1:
        return [variant for variant in chosen if 1 in variant.rows]
    order = {"layers-0": 0, **{f"dilation-{dilation}": 1 for dilation in DILATIONS}, "layers-3": 2}
    return sorted((variant for variant in chosen if 3 in variant.rows), key=lambda each: order.get(each.key, 3))
