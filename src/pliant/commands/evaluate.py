"""`pliant eval`: evaluate trained weights on a split."""

from __future__ import annotations

import json
from itertools import chain, count
from pathlib import Path
from typing import Any

from pliant.console import Console, Table, styled
from pliant.engine.test_time_augmentation import Procedure
from pliant.launch import ALONE, Launch, is_first
from pliant.outputs import Outputs
from pliant.runs.evaluation import evaluate_trained, open_for_evaluation, require_known_classes
from pliant.runs.evaluation_page import PAGE, rows_of_classes, write_page
from pliant.runs.exported import open_trained
from pliant.runs.files import write_json
from pliant.runs.trained import Trained


def evaluate(
    source: Path,
    data: Path | None = None,
    *,
    split: str | None = None,
    strict: bool = False,
    out: Path | None = None,
    procedure: Procedure | None = None,
    voc_results: bool = False,
    launch: Launch = ALONE,
    device: str | None = None,
) -> dict[str, Any]:
    """Evaluate a run or weights, print a table, and write the numbers as JSON.

    For detection on COCO's layout, all detections are written beside the report in the format of COCO's server, as
    ``detections_SPLIT_pliant_results.json``; a split without annotations has no other results. Images whose pixels are
    damaged are left out and listed.

    A page beside the JSON file shows the results of each class, charts, and the worst and the best images.

    Args:
        source: A run folder, a file of weights that `train` wrote, or a file that `export` wrote.
        data: The folder of the data; None for that of the training, if `source` is a run folder.
        split: The split; None for that of the training's recipe.
        strict: Whether the first problem of the data is an error.
        out: The JSON file; the page has its name with ``.html``. If None, it is ``eval-SPLIT.json`` in the run folder
            or beside the weights. For data other than the run's own it is ``eval-SPLIT-DATA.json``, named after the
            data's folder, and result files are in a folder ``eval-SPLIT-DATA``. A file that Pliant did not write is
            never replaced: see `pliant.outputs`.
        procedure: Test-time augmentation and merging; None for a single pass.
        voc_results: Whether to also write ``comp4_det_test_CLASS.txt``, for detection on VOC's layout.
        launch: The processes that share the images, each with a GPU or on the CPU.
        device: The device, such as ``"cuda"``; None for one that the recipe's accelerator allows.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: If `source` cannot be used, no data or split is known, or an option does not fit the recipe.
        DataError: If the data cannot be used, or has nothing of the classes that the network knows.
        ChildProcessError: If one of several processes died.
    """
    console = Console(stderr=True, quiet=not is_first())
    trained = open_trained(source)
    root, name = trained.data_and_split(data, split)
    path = _place(trained, root, name) if out is None else out
    if path.suffix == PAGE:
        raise ValueError(f"{path} is where the page would be; name the JSON file, such as {path.with_suffix('.json')}")
    reports = Outputs.file(path, inputs=[trained.path], recognised=_is_report)
    page = Outputs.file(path.with_suffix(PAGE), inputs=[trained.path])
    chosen = trained.device(device)
    if launch.needed:
        launch.run(chosen.type)
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report
    dataset = open_for_evaluation(trained, root, name, strict=strict, quiet=console.quiet)
    files = trained.task.result_files(dataset, name, voc=voc_results)
    require_known_classes(trained, dataset, root, name)
    if len(dataset.problems):
        console.print(*dataset.problems.summary().splitlines(), sep="\n", style="yellow")
    beside = out is not None or path.stem == f"eval-{name}"
    found = Outputs(path.parent if beside else path.with_suffix(""), files) if files else None
    evaluation = evaluate_trained(trained, dataset, name, procedure=procedure, device=chosen)
    report = evaluation.report
    if not is_first():
        return {**report, "results": evaluation.results}
    written = [path]
    if found is not None:
        with found.writing(*files) as places:
            trained.task.write_results(places, evaluation.module, dataset)
        written = [*(found.folder / file for file in files), path]
    if dataset.annotated:
        report["results"] = evaluation.results
        _print_results(trained, report)
    else:
        console.print(f"{name} has no annotations to evaluate by")
    with reports.writing(path.name) as (place,):
        write_json(place, report)
    if dataset.annotated:
        with page.writing(path.with_suffix(PAGE).name) as (place,):
            write_page(place, trained, dataset, evaluation)
        written.append(path.with_suffix(PAGE))
    for image in evaluation.skipped:
        console.print(f"{image} cannot be read and was left out", style="red")
    console.print(f"Written to {', '.join(map(str, written))}")
    return report


def _is_report(path: Path) -> bool:
    """Whether `evaluate` wrote a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"weights", "recipe", "split", "procedure"} <= content.keys()


def _place(trained: Trained, root: Path, split: str) -> Path:
    """The path of the report. Each data folder has its own, so a report replaces only one on the same data."""
    data = str(root.resolve())
    own = trained.data is not None and str(Path(trained.data).resolve()) == data
    plain = f"eval-{split}"
    if own:
        return trained.folder / f"{plain}.json"
    other = f"{plain}-{root.resolve().name}"
    names = chain([plain] if trained.data is None else [], [other], (f"{other}-{number}" for number in count(2)))
    paths = (trained.folder / f"{name}.json" for name in names)
    return next(path for path in paths if not path.exists() or _data_of(path) == data)


def _data_of(path: Path) -> str | None:
    """The data folder that a report names; None if the file is not a report."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("data") if isinstance(content, dict) else None


def _print_results(trained: Trained, report: dict[str, Any]) -> None:
    """Print the results as a table, in percent: a row for all classes together, then one for each."""
    results, columns = report["results"], trained.task.columns
    table = Table(title=f"{trained.name} after {trained.step} steps on {report['split']}, in percent")
    table.add_column("class")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    (_, *together), *of_classes = rows_of_classes(results, columns)
    table.add_row(styled("all", "bold"), *together, end_section=True)
    for row in of_classes:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for line in trained.task.remarks(results):
        console.print(line)
