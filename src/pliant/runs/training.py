"""From a recipe to a training: the module to fit, the settings to fit it with, and the description of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pliant.data import ImageSet
from pliant.engine.batches import orientations
from pliant.engine.fitting import FitSettings
from pliant.engine.training import TrainingModule
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.initial_weights import InitialWeights, read_initial
from pliant.runs.start import Start, start_from
from pliant.tasks.splits import Splits
from pliant.tasks.task import task_of


def build_module(recipe: Recipe, classes: Sequence[str], *, pretrained: bool = True) -> TrainingModule:
    """The network of a recipe with its losses, schedule and metrics.

    Args:
        recipe: The recipe.
        classes: Names of the classes, as `Task.build` takes them.
        pretrained: Whether to load the recipe's weights; False if a checkpoint is loaded later.

    Raises:
        FileNotFoundError, ValueError: See `read_initial` and `start_from`.
    """
    return start_module(recipe, classes, read_initial(recipe) if pretrained else None, pretrained=pretrained)[0]


def start_module(
    recipe: Recipe, classes: Sequence[str], initial: InitialWeights | None, *, pretrained: bool = True
) -> tuple[TrainingModule, Start | None]:
    """The same with weights that have been read, and what was loaded of them."""
    task = task_of(recipe)
    model = task.build(recipe, classes, pretrained=pretrained)
    start = None if initial is None else start_from(model, initial, recipe, classes)
    return task.module(recipe, model, classes), start


def fit_settings(recipe: Recipe, device: torch.device | None = None) -> FitSettings:
    """The settings with which the engine runs a recipe; if `device` is None, the recipe's `accelerator` decides."""
    return FitSettings(
        batch_size=recipe.batch_size,
        evaluation_batch_size=task_of(recipe).evaluation_batch(recipe),
        workers=recipe.workers,
        checkpoint_every=recipe.checkpoint_every,
        validate_every=recipe.validate_every,
        precision=recipe.precision,
        clip=recipe.clip,
        accelerator=recipe.accelerator,
        device=device,
        full_checkpoints=recipe.full_checkpoints,
    )


def batch_groups(recipe: Recipe, training: ImageSet) -> list[int] | None:
    """The group of each image, where a batch holds images of one group only; None for a single group."""
    return orientations(training.sizes) if recipe.aspect_grouping else None


def describe(
    name: str,
    assignments: Sequence[str],
    recipe: Recipe,
    classes: Sequence[str],
    splits: Splits,
    data: Path,
    strict: bool = False,
    category_ids: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """The content of a run's ``recipe.json``, with everything that resuming needs."""
    ids = [(category_ids or {}).get(label) for label in range(1, len(classes) + 1)]
    return {
        "recipe": name,
        "overrides": list(assignments),
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": list(classes),
        "category_ids": None if None in ids else ids,
        "splits": splits.names(),
        "data": str(data.resolve()),
        "strict": strict,
    }


def weights_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's description that is stored with its weights: all but paths, and how strictly data is read."""
    return {key: value for key, value in description.items() if key not in ("data", "strict", "start")}
