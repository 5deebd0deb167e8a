"""Judge trained weights on a split."""

from __future__ import annotations

import dataclasses
import json
import warnings
from itertools import chain, count
from pathlib import Path
from typing import Any

from pliant import distributed, launch
from pliant.commands.train import build_module, fit_settings
from pliant.console import Console, Progress, Table, styled
from pliant.data import COCODetection, DataError, DetectionSet, ImageSet, SegmentationSet, VOCDetection
from pliant.engine import DetectionModule
from pliant.engine.fitting import judge
from pliant.engine.test_time_augmentation import Procedure
from pliant.engine.training import TrainingModule
from pliant.outputs import Outputs
from pliant.recipes.base import Recipe, kind_of
from pliant.runs.exported import open_trained
from pliant.runs.files import write_json
from pliant.runs.trained import Trained, under_procedure
from pliant.tasks.datasets import choose_test_split, collate_for_evaluation, open_split
from pliant.tasks.result_files import voc_result_names, write_coco_results, write_voc_results

_COLUMNS = {
    "detection": ("AP", "AP50", "AP75", "VOC_AP50", "VOC_AP50_11pt", "VOC_AP70", "VOC_AP70_11pt"),
    "segmentation": ("IoU", "IoU_scaled"),
    "classification": ("top1", "top5"),
}


def evaluate(
    source: Path,
    data: Path | None = None,
    *,
    split: str | None = None,
    strict: bool = False,
    out: Path | None = None,
    procedure: Procedure | None = None,
    voc_results: bool = False,
    devices: int | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Judge a run or weights, print a table, and write the numbers as JSON.

    For detection on COCO's layout, all that was found is written beside it as COCO's server takes it,
    ``detections_SPLIT_pliant_results.json``; of a split without annotations there is nothing else to tell. Images
    whose pixels are damaged are left out, and named.

    Args:
        source: A run folder, a file of weights that `train` wrote, or one that `export` did.
        data: The folder of the data; that of the training if None and `source` is a run folder.
        split: The split; that of the training's recipe if None.
        strict: Whether the first problem of the data is an error.
        out: The JSON file; if None, ``eval-SPLIT.json`` in the run folder or beside the weights, and, for other data
            than the run's own, ``eval-SPLIT-DATA.json`` after the data's folder, with result files in a folder
            ``eval-SPLIT-DATA``. A file that is not Pliant's is never replaced: see `pliant.outputs`.
        procedure: What is done at test time beyond one pass.
        voc_results: For detection on VOC's layout, write ``comp4_det_test_CLASS.txt`` too.
        devices: How many GPUs, or processes on the CPU, share the images; None for one, or what torchrun says.
        show: Whether to print the table and how far the evaluation is.

    Returns:
        What was written.

    Raises:
        ValueError: If `source` is neither, no data or split is known, or an option does not fit the recipe.
        DataError: If the data cannot be used, or has nothing of the classes that the network knows.
        ChildProcessError: If one of several processes died.
    """
    console = Console(stderr=True, quiet=not (show and launch.is_first()))
    trained = open_trained(source)
    root, name = data_and_split(trained, data, split)
    path = _place(trained, root, name) if out is None else out
    reports = Outputs.file(path, inputs=[trained.path], recognised=_is_report)
    if devices is not None and launch.must_launch(devices):
        launch.require_gpus(devices, trained.recipe.accelerator)
        flags = ["--strict"] * strict + ["--voc-results"] * voc_results + _options(procedure or Procedure())
        places = ["--data", str(root), "--split", name, *([] if out is None else ["--out", str(out)])]
        launch.launch(["eval", str(source), *places, *flags], devices)
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report
    with Progress(quiet=console.quiet) as progress, progress.task("reading the data"):
        dataset = open_split(trained.recipe, root, name, classes=trained.classes, strict=strict)
    if voc_results and not isinstance(dataset, VOCDetection):
        raise ValueError("VOC's result files are for detection on VOC's layout")
    dataset.skip_damaged()
    _require_known_classes(trained, dataset, name)
    if len(dataset.problems):
        console.print(*dataset.problems.summary().splitlines(), sep="\n", style="yellow")
    beside = out is not None or path.stem == f"eval-{name}"
    found = _found_outputs(dataset, path.parent if beside else path.with_suffix(""), name, voc_results)
    module = build_module(trained.recipe, trained.classes, pretrained=False)
    module.model = under_procedure(trained.model(), trained.recipe, procedure)
    results = _judge(module, dataset, trained.recipe, show)
    skipped = sorted(set(chain.from_iterable(distributed.gather(dataset.skipped))))
    if len(skipped) == len(dataset):
        raise DataError(dataset.root, f"no image can be read: {', '.join(map(str, skipped[:5]))}")
    report = _describe(trained, root, name, dataset, skipped, procedure or Procedure())
    if not launch.is_first():
        return {**report, "results": results}
    written = _write_found(module, dataset, found)
    if isinstance(dataset, COCODetection) and not dataset.annotated:
        console.print(f"{name} has no annotations to judge by")
    else:
        report["results"] = results
        if show:
            print_results(trained, report)
    with reports.writing(path.name) as (place,):
        write_json(place, report)
    for image in skipped:
        console.print(f"{image} cannot be read and was left out", style="red")
    console.print(f"Written to {', '.join(map(str, [*written, path]))}")
    return report


def _judge(module: TrainingModule, dataset: ImageSet, recipe: Recipe, show: bool) -> dict[str, Any]:
    settings = fit_settings(recipe)
    with warnings.catch_warnings():
        # Where no image can be read, which is an error below.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        return judge(module, dataset, collate_for_evaluation(recipe), settings, show=show)


def _is_report(path: Path) -> bool:
    """Whether a file is one that `evaluate` wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"weights", "recipe", "split", "procedure"} <= content.keys()


def _options(procedure: Procedure) -> list[str]:
    """A procedure as options of the command line."""
    flags = {"--flip": procedure.flip, "--box-averaging": procedure.box_averaging, "--soft-nms": procedure.soft_nms}
    scales = ["--scales", ",".join(map(str, procedure.scales))] if procedure.scales else []
    return [flag for flag, wanted in flags.items() if wanted] + scales


def _describe(
    trained: Trained, root: Path, split: str, dataset: ImageSet, skipped: list[Path], procedure: Procedure
) -> dict[str, Any]:
    """What was judged, and how."""
    return {
        "weights": str(trained.path),
        "step": trained.step,
        "recipe": trained.name,
        "data": str(root.resolve()),
        "split": split,
        "procedure": dataclasses.asdict(procedure),
        "images": len(dataset) - len(skipped),
        "skipped": [str(image) for image in skipped],
        "problems": dataset.problems.counts(),
    }


def _place(trained: Trained, root: Path, split: str) -> Path:
    """The report's file: of its own for each data, so that a report is replaced by one on the same data alone."""
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
    """The data of a report; None if the file is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("data") if isinstance(content, dict) else None


def _require_known_classes(trained: Trained, dataset: ImageSet, split: str) -> None:
    """Raise `DataError` if there is no box or pixel of a class that the network knows."""
    if isinstance(dataset, COCODetection) and not dataset.annotated:
        return
    if isinstance(dataset, DetectionSet):
        known = any(len(dataset.target(index)["labels"]) for index in range(len(dataset)))
    elif isinstance(dataset, SegmentationSet):
        known = any(bool((dataset.mask(index) < len(trained.classes)).any()) for index in range(len(dataset)))
    else:
        return  # an image of another class is none of the data set
    if known:
        return
    theirs = open_split(dataclasses.replace(trained.recipe, classes=()), dataset.root, split).classes
    raise DataError(
        dataset.root,
        f"{split} has nothing of the classes that the network knows: {', '.join(trained.classes)}. "
        f"The classes there: {', '.join(theirs) or 'none'}. {dataset.problems.summary()}",
    )


def _found_outputs(dataset: ImageSet, folder: Path, split: str, voc: bool) -> Outputs | None:
    """The files of what is found, where the layout has such."""
    if isinstance(dataset, COCODetection):
        return Outputs(folder, [f"detections_{split}_pliant_results.json"])
    if voc:
        return Outputs(folder, voc_result_names(dataset.classes))
    return None


def _write_found(module: TrainingModule, dataset: ImageSet, outputs: Outputs | None) -> list[Path]:
    """Write what was found as result files."""
    if outputs is None or not isinstance(module, DetectionModule):
        return []
    with outputs.writing(*outputs.names) as places:
        if isinstance(dataset, COCODetection):
            write_coco_results(places[0], module.found.items(), dataset.category_ids)
        elif isinstance(dataset, VOCDetection):
            names = dict(zip(dataset.image_ids, dataset.ids, strict=True))
            write_voc_results(places[0].parent, module.found.items(), names, dataset.classes)
    return [outputs.folder / name for name in outputs.names]


def data_and_split(trained: Trained, data: Path | None, split: str | None) -> tuple[Path, str]:
    """The folder and the split to judge on, where they are not given those that the training left."""
    if data is None and trained.data is None:
        raise ValueError("say where the data is with --data PATH")
    root = Path(trained.data or "") if data is None else data
    if split is None:
        # The split the training left for judging, if this data has it, else a usual name.
        recipe = dataclasses.replace(trained.recipe, test_split=trained.test_split or trained.recipe.test_split)
        split = choose_test_split(recipe, root)
    return root, split


def print_results(trained: Trained, report: dict[str, Any]) -> None:
    """Print the results as a table, in percent: a row for all classes together, then one for each."""
    results = report["results"]
    columns = _COLUMNS[kind_of(trained.recipe)]
    table = Table(title=f"{trained.name} after {trained.step} steps on {report['split']}, in percent")
    table.add_column("class")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    whole = {"IoU": results.get("mIoU"), "IoU_scaled": results.get("mIoU_scaled"), **results}
    table.add_row(styled("all", "bold"), *(_percent(whole.get(column)) for column in columns), end_section=True)
    for name, values in results["per_class"].items():
        table.add_row(name, *(_percent(values.get(column)) for column in columns))
    console = Console()
    console.print(table)
    if "pixel_accuracy" in results:
        console.print(f"pixel accuracy {_percent(results['pixel_accuracy'])}")


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f}"
