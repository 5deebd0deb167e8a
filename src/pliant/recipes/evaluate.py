"""Judge trained weights on a split."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pliant.data import DataError
from pliant.engine.fitting import evaluation_loader, judge
from pliant.engine.runs import write_json
from pliant.recipes.base import kind_of
from pliant.recipes.datasets import choose_splits, collate_for_evaluation, open_split
from pliant.recipes.train import build_module, fit_settings
from pliant.recipes.trained import Trained, load_state, load_trained

_COLUMNS = {
    "detection": ("AP", "AP50", "AP75", "VOC_AP50", "VOC_AP50_11pt", "VOC_AP70", "VOC_AP70_11pt"),
    "segmentation": ("IoU",),
    "classification": ("top1", "top5"),
}


def evaluate(
    source: Path, data: Path | None = None, *, split: str | None = None, strict: bool = False, out: Path | None = None
) -> dict[str, Any]:
    """Judge a run or weights, print a table, and write the numbers as JSON.

    Args:
        source: A run folder or a file of weights that `train` wrote.
        data: The folder of the data; that of the training if None and `source` is a run folder.
        split: The split; that of the training's recipe if None.
        strict: Whether the first problem of the data is an error.
        out: The JSON file; ``eval-SPLIT.json`` in the run folder or beside the weights if None.

    Returns:
        What was written.

    Raises:
        ValueError: If `source` is neither, or no data or split is known.
        DataError: If the data cannot be used.
    """
    trained = load_trained(source)
    root, name = _data_and_split(trained, data, split)
    dataset = open_split(trained.recipe, root, name, classes=trained.classes, strict=strict)
    module = build_module(trained.recipe, trained.classes, pretrained=False)
    load_state(module.model, trained)
    settings = fit_settings(trained.recipe)
    loader = evaluation_loader(dataset, collate_for_evaluation(trained.recipe), settings)
    results = judge(module, loader, settings)
    report = {
        "weights": str(trained.path),
        "step": trained.step,
        "recipe": trained.name,
        "data": str(root.resolve()),
        "split": name,
        "images": len(dataset),
        "problems": dataset.problems.counts(),
        "results": results,
    }
    path = trained.folder / f"eval-{name}.json" if out is None else out
    write_json(path, report)
    print_results(trained, report)
    Console(stderr=True, soft_wrap=True).print(f"Written to {path}")
    return report


def _data_and_split(trained: Trained, data: Path | None, split: str | None) -> tuple[Path, str]:
    if data is None and trained.data is None:
        raise ValueError("say where the data is with --data PATH")
    root = Path(trained.data or "") if data is None else data
    if split is None:
        # The split the training left for judging, if this data has it, else a usual name.
        recipe = dataclasses.replace(trained.recipe, test_split=trained.test_split or trained.recipe.test_split)
        split = choose_splits(recipe, root).test
    if split is None:
        raise DataError(root, "found no split to judge on; name one with --split NAME")
    return root, split


def print_results(trained: Trained, report: dict[str, Any]) -> None:
    """Print the results as a table, in percent: a row for all classes together, then one for each."""
    results = report["results"]
    columns = _COLUMNS[kind_of(trained.recipe)]
    table = Table(title=f"{trained.name} after {trained.step} steps on {report['split']}, in percent")
    table.add_column("class")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    whole = {"IoU": results.get("mIoU"), **results}
    table.add_row("[bold]all", *(_percent(whole.get(column)) for column in columns), end_section=True)
    for name, values in results["per_class"].items():
        table.add_row(name, *(_percent(values.get(column)) for column in columns))
    console = Console()
    console.print(table)
    if "pixel_accuracy" in results:
        console.print(f"pixel accuracy {_percent(results['pixel_accuracy'])}")


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f}"
