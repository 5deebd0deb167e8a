"""A trained network: its weights, with the recipe and classes that they were trained with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.data import DataError, ImageSet
from pliant.data.discovery import WHOLE
from pliant.devices import choose_device
from pliant.recipes.base import Recipe
from pliant.runs.folder import RunFolder
from pliant.runs.tensors import require_fit
from pliant.runs.weights import read_weights
from pliant.suggestions import did_you_mean_path
from pliant.tasks.data_report import read_made
from pliant.tasks.sources import MadeSplit
from pliant.tasks.splits import choose_splits, choose_test_split
from pliant.tasks.task import Task, build_model, stored_recipe, task_of


@dataclass(frozen=True)
class Trained:
    """A trained network, as a run folder or a file of weights describes it.

    Attributes:
        path: The file of weights.
        folder: Folder for results: the run folder, or that of the file.
        name: Name of the recipe.
        recipe: The recipe with all changes.
        classes: Names of the classes; without the background for detection, with it first for segmentation.
        step: Number of training steps done.
        data: The folder of the training data; None unless a run folder records it.
        test_split: Split that the training left for evaluation.
        category_ids: The training data's id of each class, in the order of the classes; None if it has no ids.
        state: The tensors by name.
        made: The splits that the training made of its data, because these had none.
    """

    path: Path
    folder: Path
    name: str
    recipe: Recipe
    classes: tuple[str, ...]
    step: int
    data: str | None
    test_split: str | None
    category_ids: tuple[int, ...] | None
    state: dict[str, Tensor]
    made: Mapping[str, MadeSplit] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The network with these weights, ready to predict.

        Raises:
            ValueError: If the weights do not fit the network, or the described network is far larger than they are.
        """
        model = build_within(self.path, self.recipe, self.classes, self.state)
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        require_fit(self.path, self.state, shapes, self.name, most=12)
        model.load_state_dict(self.state)
        return model.eval()

    @property
    def task(self) -> Task[Any]:
        """The task of the recipe."""
        return task_of(self.recipe)

    def device(self, asked: str | None) -> torch.device:
        """The device to run the network on; see `choose_device`."""
        return choose_device(asked, self.recipe.accelerator)

    def data_and_split(self, data: Path | None, split: str | None) -> tuple[Path, str]:
        """The folder and split to evaluate on; None selects the training's.

        Raises:
            ValueError: If no data is known.
            DataError: If the data has no such split.
        """
        if data is None and self.data is None:
            raise ValueError("say where the data is with --data PATH")
        root = Path(self.data or "") if data is None else data
        if split is None:
            # Prefer the split that the training left for evaluation; if this data lacks it, take a usual name.
            recipe = self.recipe.replaced(test_split=self.test_split or self.recipe.test_split)
            source = self.task.source(recipe, root)
            made = self.made.get(self.test_split or "")
            if made is not None and self._has_images(made, source.root):
                split = str(self.test_split)
            elif self.made and source.splits() == [WHOLE]:
                split = WHOLE  # other data than those of the training
            else:
                split = choose_test_split(recipe, root, source)
        return root, split

    def open(self, root: Path, split: str, *, strict: bool = False) -> ImageSet:
        """Open a split with the classes of the network.

        The splits that the training made are those of its lists, also if the data has moved. For weights without
        these lists they are made again in the same way.

        Raises:
            DataError: If the data cannot be used.
        """
        source = self.task.source(self.recipe, root)
        made: Mapping[str, MadeSplit] = {}
        if split in self.made and self._has_images(self.made[split], source.root):
            made = self.made
        elif not source.has(split):
            with contextlib.suppress(DataError):  # there is no split to train on either
                made = choose_splits(self.recipe, root, source=source).made
        return self.task.open(self.recipe, root, split, classes=self.classes, strict=strict, source=source, made=made)

    def _has_images(self, made: MadeSplit, root: Path) -> bool:
        return any((root / image).is_file() for image in made.images)


def load_trained(source: Path) -> Trained:
    """Read a run folder (its best weights, or the last where there was no validation) or a file of weights.

    If `source` is a checkpoint (``.ckpt``), the weights that were written with it are read.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If it is neither a run folder nor a file of weights, or is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: there is no such run folder or file of weights{did_you_mean_path(source)}")
    run = RunFolder.open(source) if source.is_dir() else None
    path = _weights_of(source) if run is None else run.weights()
    state, description = read_weights(path)
    fields = described(path, description)
    data = None if run is None else str(run.description()["data"])
    made = {} if run is None else read_made(run.data())
    return Trained(
        path=path, folder=path.parent if run is None else source, data=data, state=state, made=made, **fields
    )


def _weights_of(path: Path) -> Path:
    if path.suffix != ".ckpt":
        return path
    weights = path.with_suffix(".safetensors")
    if not weights.is_file():
        raise FileNotFoundError(
            f"{path} is a checkpoint, to resume from; its weights would be {weights}, which is missing"
        )
    return weights


def described(path: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Trained` from the description in a file's header.

    Raises:
        ValueError: If an entry is missing or wrong.
    """
    try:
        return {
            "name": str(description["recipe"]),
            "recipe": stored_recipe(description["kind"], description["fields"]),
            "classes": tuple(map(str, description["classes"])),
            "step": int(description["step"]),
            "test_split": description["splits"]["test"],
            "category_ids": _category_ids(description),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its description of the recipe cannot be used: {error}") from error


def _category_ids(description: Mapping[str, Any]) -> tuple[int, ...] | None:
    given = description.get("category_ids")  # earlier files have none
    if given is None:
        return None
    ids = tuple(map(int, given))
    if not len(description["classes"]) == len(ids) == len(set(ids)):
        raise ValueError(f"expected a category id for each class, got {given}")
    return ids


def build_within(path: Path, recipe: Recipe, classes: tuple[str, ...], state: Mapping[str, Tensor]) -> nn.Module:
    """Build the network that a file describes, with limited memory, as the file may come from a stranger.

    Raises:
        ValueError: If it cannot be built, or a tensor would take more than about eight times the memory of `state`.
    """
    most = 8 * sum(value.nbytes for value in state.values()) + 2**26
    try:
        with _Limit(most):
            return build_model(recipe, classes, pretrained=False)
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes a network that cannot be built for its weights: {error}") from error


class _Limit(TorchDispatchMode):
    """Raises ValueError if an operation returns a tensor of more than `most` bytes, before its memory is filled."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.nbytes > self.most:
            raise ValueError(f"a tensor of shape {list(made.shape)} is too large")
        return made
