"""The interface of a task, by which every command works with it without knowing which one it is."""

from __future__ import annotations

import abc
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from pliant.data import ImageSet
from pliant.engine.extremes import RankedImage
from pliant.engine.test_time_augmentation import Procedure
from pliant.engine.training import TrainingModule
from pliant.recipes.base import RANDOM, Recipe, from_fields
from pliant.tasks.evidence import Evidence
from pliant.tasks.layouts import Layout
from pliant.tasks.places import Place
from pliant.tasks.sources import MadeSplit, Source, find_source

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Agreement:
    """How far an exported file is from its network on one image.

    Attributes:
        same: Whether both gave the same result, as each task defines it.
        scores: The largest difference of scores (of probabilities for classes).
        detections: Number of the network's detections that were compared; None for other tasks.
        pixels: The largest distance between edges of boxes, in pixels of the image; None for other tasks.
    """

    same: bool
    scores: float
    detections: int | None = None
    pixels: float | None = None


@dataclass(frozen=True)
class Exportable:
    """A network as a function of tensors, ready for export.

    Attributes:
        module: The network in evaluation mode.
        inputs: Example inputs; the file accepts other numbers and sizes of images.
        input_names, output_names: Names of the inputs and outputs in the file.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...] = ("images",)
    output_names: tuple[str, ...] = ("scores",)


@dataclass(frozen=True)
class View:
    """One image as `pliant look` shows it; places and boxes are in pixels of `image`.

    Attributes:
        picture: The picture that `image` was made from, uint8 `[3, h, w]`.
        image: The input of the network, float `[3, H, W]`.
        places: (name, (y, x)) of the background, the smallest and the largest object, if the image has them.
        boxes, labels, scores: The best detections of a detector.
        overlay: The classes of a segmenter in colour, with a transparent background, uint8 `[4, h, w]`.
        colours: The name and colour of each class in `overlay`.
    """

    picture: Tensor
    image: Tensor
    places: list[tuple[str, Place]]
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    overlay: Tensor | None = None
    colours: Sequence[tuple[str, tuple[int, int, int]]] = ()


@dataclass(frozen=True)
class Ablation:
    """The metrics by which `pliant ablate` compares networks of a recipe.

    Attributes:
        metrics: Titles of the metrics, with their keys in the results. The first one is plotted.
        of_class: Key of a metric of each class that is above 0 if the network finds the class.
        pooled: Whether the network has RoI pooling.
    """

    metrics: Mapping[str, str]
    of_class: str
    pooled: bool = False


class Task(abc.ABC, Generic[R]):
    """Everything that is special about one kind of training, from images in a folder to results.

    A module of this package that ends in ``TASK = ...`` defines a task; its name is the `kind` of the task's recipes.

    Attributes:
        recipe: The class of its recipes.
        layouts: The layouts of data that it reads, by their names in recipes.
        columns: The columns of `pliant eval`: keys of a class's results, each with the key for all classes together.
        endings: Endings of the files for the pictures that `draw` returns; the first is the picture for people.
        recorded: Whether `predictions.json` is written, with what `records` returns.
        background: Whether the first class is the background.
        has_boxes: Whether targets and results are boxes.
        annotation_files: Whether the data have files of annotations; otherwise folders alone say the classes.
    """

    recipe: ClassVar[type[Recipe]]
    layouts: ClassVar[Mapping[str, Layout]]
    columns: ClassVar[Mapping[str, str]]
    endings: ClassVar[tuple[str, ...]] = (".png",)
    recorded: ClassVar[bool] = True
    background: ClassVar[bool] = False
    has_boxes: ClassVar[bool] = False
    annotation_files: ClassVar[bool] = True

    # -- data

    @abc.abstractmethod
    def transforms(self, recipe: R, *, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
        """The transforms of an image and its target."""

    @abc.abstractmethod
    def collate(self, *, training: bool) -> Callable[[list[Any]], Any]:
        """The function that makes a batch of samples."""

    def evaluation_batch(self, recipe: R) -> int:
        """The number of images in an evaluation batch; 1 if their sizes differ."""
        return 1

    def source(self, recipe: Recipe, root: Path) -> Source:
        """The data in a folder, in the layout that the recipe names, or that is found there.

        Raises:
            DataError: If the folder is missing, or in none of the layouts of this task.
            ValueError: If the recipe names a layout that this task does not read.
        """
        layouts = self.layouts
        if recipe.layout is not None:
            if recipe.layout not in layouts:
                known = " or ".join(f"layout={name}" for name in layouts)
                raise ValueError(f"{recipe.kind} reads {known}, got layout={recipe.layout}")
            layouts = {recipe.layout: layouts[recipe.layout]}
        return find_source(layouts, root, (recipe.train_split or "").split("+"))

    def reading(self, recipe: R) -> dict[str, Any]:
        """Further arguments of the data sets that are opened."""
        return {}

    def open(
        self,
        recipe: R,
        root: Path,
        split: str,
        *,
        training: bool = False,
        classes: tuple[str, ...] = (),
        strict: bool = False,
        source: Source | None = None,
        made: Mapping[str, MadeSplit] | None = None,
    ) -> ImageSet:
        """Open one split of a data set.

        Args:
            recipe: The recipe that determines how the split is read and transformed.
            root: The folder of the data.
            split: Name of the split, or several joined by ``+``.
            training: Whether samples are transformed for training or for evaluation.
            classes: Names of the classes; empty for the recipe's or those in the data.
            strict: Whether the first problem of the data is an error.
            source: The data in `root`; None to find them.
            made: The splits that were made of the data's own.

        Raises:
            DataError: If the split is missing or holds no usable image.
            ValueError: If the task does not read the layout.
        """
        source = self.source(recipe, root) if source is None else source
        return source.open(
            split,
            made=made,
            classes=classes or recipe.classes or None,
            transforms=self.transforms(recipe, training=training),
            strict=strict,
            training=training,
            **self.reading(recipe),
        )

    def knows_any(self, dataset: ImageSet) -> bool:
        """Whether a data set has an annotation of any class that it was opened with."""
        return any(dataset.class_counts())

    def completed(self, recipe: R, training: ImageSet) -> R:
        """The recipe with a value in each field that it leaves to the training images."""
        return recipe

    # -- network

    @abc.abstractmethod
    def build(self, recipe: R, classes: Sequence[str], *, pretrained: bool = True) -> nn.Module:
        """Build the network of a recipe.

        Args:
            recipe: The recipe that names the network and its options.
            classes: Names of the classes; without the background in detection.
            pretrained: Whether to load timm's own weights of the backbone if the recipe has ``weights=pretrained``.
                Weights from files are loaded later (`pliant.runs.training.start_module`).

        Raises:
            ValueError: If the backbone is unknown or does not support the options.
        """

    @abc.abstractmethod
    def module(self, recipe: R, model: nn.Module, classes: Sequence[str]) -> TrainingModule:
        """The network with its losses, schedule and metrics."""

    def training_options(self, recipe: R, model: nn.Module) -> dict[str, Any]:
        """The arguments that every `TrainingModule` takes from a recipe."""
        multipliers = self.lr_multipliers(recipe)
        names = [name for name, _ in model.named_parameters()]
        used = {
            pattern: factor
            for pattern, factor in multipliers.items()
            if any(fnmatchcase(name, pattern) for name in names)
        }
        return {"schedule": recipe.schedule, "seed": recipe.seed, "lr_mult": used}

    def lr_multipliers(self, recipe: R) -> dict[str, float]:
        """Learning-rate multipliers by glob patterns of parameter names; of several that match, the last one counts."""
        return without_ones({"*.bias": recipe.bias_lr_mult, "*.offset_conv.*": recipe.offset_lr_mult})

    def doubts(self, recipe: R) -> dict[str, str]:
        """Warnings about a training that can start, each under a one-word title."""
        if recipe.weights not in (None, RANDOM):
            return {}
        start = "the backbone starts" if recipe.fixed_norms else "all of the backbone is trained"
        return {"weights": f"none: {start} from random numbers (--set weights=FILE)"}

    def without_deformation(self, recipe: R) -> R:
        """The recipe of the plain network."""
        return recipe.replaced(deform_layers=0)

    def augmented(self, model: nn.Module, procedure: Procedure) -> nn.Module:
        """The network under a test-time procedure.

        Raises:
            ValueError: If the procedure does not fit the network.
        """
        raise ValueError("scales, flip, box averaging and soft-NMS are for detection and segmentation")

    # -- one image

    @abc.abstractmethod
    def infer(self, model: nn.Module, image: Tensor, recipe: R, device: torch.device | str) -> Any:
        """Run a network in evaluation mode on an image, uint8 [3, H, W]; the result is on the CPU."""

    @abc.abstractmethod
    def draw(self, image: Tensor, found: Any, classes: Sequence[str], *, threshold: float) -> list[Image.Image]:
        """Draw the result of `infer`: one picture for each of `endings`."""

    def records(
        self, found: Any, classes: Sequence[str], *, image_id: int, category_ids: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """The entries of `predictions.json` for an image.

        Args:
            found: The result of `infer`.
            classes: Names of the classes.
            image_id: Index of the image among all images.
            category_ids: The training data's id of each class; None if it has no ids.
        """
        return []

    @abc.abstractmethod
    def view(
        self,
        model: nn.Module,
        recipe: R,
        classes: Sequence[str],
        picture: Tensor,
        *,
        threshold: float,
        device: torch.device | str,
    ) -> View:
        """What `pliant look` shows of an image, uint8 [3, h, w]."""

    def as_input(self, image: Tensor) -> Any:
        """The network's input for one image, float [3, H, W]."""
        return image[None]

    # -- results

    def remarks(self, results: Mapping[str, Any]) -> list[str]:
        """Lines to print below the table of results."""
        return []

    def result_files(self, dataset: ImageSet, split: str, *, voc: bool) -> list[str]:
        """The names of the result files for the evaluation server of a data set.

        Args:
            dataset: The evaluated data set.
            split: Name of its split.
            voc: Whether to write VOC's files.

        Raises:
            ValueError: If `voc` is True and the data set is not VOC detection.
        """
        if voc:
            raise ValueError("VOC's result files are for detection on VOC's layout")
        return []

    def write_results(self, places: Sequence[Path], module: Any, dataset: ImageSet) -> None:
        """Write the results of an evaluation to the files of `result_files`."""
        raise NotImplementedError

    def evidence(self, module: Any, dataset: ImageSet, tested: Sequence[tuple[int, RankedImage]]) -> Evidence:
        """What the page of `pliant eval` shows besides the table of `columns`.

        Args:
            module: The training module after the test.
            dataset: The evaluated data set.
            tested: The worst and the best images by the module's `extremes`, each with its index in the data set.
        """
        return Evidence()

    def ablation(self, recipe: R) -> Ablation | None:
        """How the paper's tables compare networks of a recipe; None if they do not include them."""
        return None

    # -- export

    @abc.abstractmethod
    def exportable(self, model: nn.Module) -> Exportable:
        """The network in a form that can be exported."""

    @abc.abstractmethod
    def from_program(self, program: nn.Module, recipe: R) -> nn.Module:
        """Wrap an exported program so that it is called like the network."""

    @abc.abstractmethod
    def agreement(self, model: nn.Module, other: nn.Module, recipe: R, image: Tensor) -> Agreement:
        """Compare a network with one that `from_program` returned, on an image, uint8 [3, H, W]."""


def without_ones(multipliers: Mapping[str, float]) -> dict[str, float]:
    """The learning-rate multipliers that change something; a 1 would hide one of an earlier pattern."""
    return {pattern: factor for pattern, factor in multipliers.items() if factor != 1}


def find_task(kind: str) -> Task[Any]:
    """The task of a kind of recipe.

    Raises:
        ValueError: If this version of Pliant has no such task.
    """
    name = f"pliant.tasks.{kind}"
    known = kind.isidentifier() and importlib.util.find_spec(name) is not None
    task = getattr(importlib.import_module(name), "TASK", None) if known else None
    if not isinstance(task, Task):
        raise ValueError(f"this version of Pliant has no kind of recipe {kind!r}")
    return task


def task_of(recipe: Recipe) -> Task[Any]:
    """The task of a recipe."""
    return find_task(recipe.kind)


def stored_recipe(kind: str, fields: Mapping[str, Any]) -> Recipe:
    """The recipe that a file of a run describes.

    Raises:
        ValueError: If there is no such kind of recipe, a field is unknown, or a value is not allowed.
    """
    return from_fields(find_task(kind).recipe, fields)


def build_model(recipe: Recipe, classes: Sequence[str], *, pretrained: bool = True) -> nn.Module:
    """The network of a recipe; see `Task.build`."""
    return task_of(recipe).build(recipe, classes, pretrained=pretrained)
