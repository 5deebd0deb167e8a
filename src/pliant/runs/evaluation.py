"""Evaluating a trained network on a split of a data set."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pliant import distributed
from pliant.console import Progress
from pliant.data import DataError, ImageSet
from pliant.engine.extremes import RankedImage
from pliant.engine.fitting import evaluate
from pliant.engine.test_time_augmentation import Procedure
from pliant.engine.training import TrainingModule
from pliant.runs.trained import Trained
from pliant.runs.training import fit_settings


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        module: The network with its metrics.
        report: What was evaluated and how, without the results.
        results: The values of the metrics.
        skipped: The images that could not be read, from all processes.
        tested: The worst and the best images, each with its index in the data set; empty if the task ranks them itself.
    """

    module: TrainingModule
    report: dict[str, Any]
    results: dict[str, Any]
    skipped: list[Path]
    tested: list[tuple[int, RankedImage]]


def open_for_evaluation(
    trained: Trained, root: Path, split: str, *, strict: bool = False, quiet: bool = False
) -> ImageSet:
    """Open a split with the classes of a network; images whose pixels are damaged will be left out.

    Raises:
        DataError: If the data cannot be used.
    """
    with Progress(quiet=quiet) as progress, progress.task("reading the data"):
        dataset = trained.open(root, split, strict=strict)
    dataset.skip_damaged()
    return dataset


def require_known_classes(trained: Trained, dataset: ImageSet, root: Path, split: str) -> None:
    """Refuse annotated data that has nothing of the classes that the network knows.

    Raises:
        DataError: If it has none.
    """
    if not dataset.annotated or trained.task.knows_any(dataset):
        return
    theirs = dataclasses.replace(trained, classes=(), recipe=trained.recipe.replaced(classes=())).open(root, split)
    raise DataError(
        dataset.root,
        f"{split} has nothing of the classes that the network knows: {', '.join(trained.classes)}. "
        f"The classes there: {', '.join(theirs.classes) or 'none'}. {dataset.problems.summary()}",
    )


def evaluate_trained(
    trained: Trained,
    dataset: ImageSet,
    split: str,
    *,
    procedure: Procedure | None = None,
    device: torch.device | None = None,
    show: bool = True,
) -> Evaluation:
    """Evaluate a trained network; an exported one runs in its own runtime.

    Args:
        trained: The network.
        dataset: The data set that `open_for_evaluation` returned.
        split: Name of the split.
        procedure: Test-time augmentation and merging; None for a single pass.
        device: The device that `Trained.device` returned; None for one that the recipe's accelerator allows.
        show: Whether to show a progress bar.

    Raises:
        DataError: If no image can be read.
        ValueError: If the procedure does not fit the network.
    """
    procedure = (procedure or Procedure()).at(trained.recipe.short_side)
    model = trained.model()
    if procedure != Procedure():
        model = trained.task.augmented(model, procedure)
    module = trained.task.module(trained.recipe, model, trained.classes)
    with warnings.catch_warnings():
        # torchmetrics warns if no image can be read, which is an error below.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        settings = fit_settings(trained.recipe, device)
        results = evaluate(module, dataset, trained.task.collate(training=False), settings, show=show)
    skipped = sorted(set(chain.from_iterable(distributed.gather(dataset.skipped))))
    if len(skipped) == len(dataset):
        raise DataError(dataset.root, f"no image can be read: {', '.join(map(str, skipped[:5]))}")
    report = {
        "weights": str(trained.path),
        "step": trained.step,
        "recipe": trained.name,
        "data": str(dataset.root.resolve()),
        "split": split,
        "procedure": dataclasses.asdict(procedure),
        "images": len(dataset) - len(skipped),
        "skipped": [str(image) for image in skipped],
        "problems": dataset.problems.counts(),
    }
    return Evaluation(module, report, results, skipped, _with_indices(module.tested, dataset, set(skipped)))


def _with_indices(
    tested: Sequence[RankedImage], dataset: ImageSet, skipped: set[Path]
) -> list[tuple[int, RankedImage]]:
    """The images of a test with their indices in the data set: processes take turns, and pass over what they skip."""
    count = distributed.count()
    shares = [
        [index for index in range(rank, len(dataset), count) if dataset.paths[index] not in skipped]
        for rank in range(count)
    ]
    return [(shares[image.rank][image.place], image) for image in tested]
