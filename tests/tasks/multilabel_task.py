"""A fourth task, as CONTRIBUTING.md says to add one: which classes are in an image, on VOC's layout.

`test_fourth_task.py` runs this file as `pliant/tasks/multilabel.py`, where nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pliant.recipes.multilabel import MultiLabelRecipe
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MultilabelAveragePrecision
from torchvision.transforms.v2.functional import to_pil_image

from pliant.data import ImageSet, VOCDetection
from pliant.engine.metrics import nan_mean
from pliant.engine.training import TrainingModule
from pliant.tasks.classification import ClassificationTask
from pliant.tasks.layouts import voc
from pliant.tasks.task import Agreement


class MultiLabelMetrics:
    """Average precision of each class, and its mean."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.precision = MultilabelAveragePrecision(len(self.classes), average="none", validate_args=False)

    def update(self, logits: Tensor, present: Tensor) -> None:
        self.precision.update(logits.float().cpu(), present.long().cpu())

    def reset(self) -> None:
        self.precision.reset()

    def compute(self) -> dict[str, Any]:
        values = self.precision.compute().tolist()
        return {"mAP": nan_mean(values), "per_class": {n: {"AP": v} for n, v in zip(self.classes, values, strict=True)}}


class MultiLabelModule(TrainingModule):
    """A classifier in training, on images [N, 3, H, W] and a list of the labels in each, counted from 1."""

    monitor = "mAP"
    metrics: MultiLabelMetrics

    def __init__(self, model: nn.Module, *, classes: Sequence[str], **options: Any) -> None:
        super().__init__(model, metrics=MultiLabelMetrics(classes), **options)

    def training_step(self, batch: tuple[Tensor, list[Tensor]], batch_idx: int) -> Tensor:
        scores = self.model(batch[0]).float()
        return self.total_loss(
            {"loss_class": functional.binary_cross_entropy_with_logits(scores, self._present(batch))}
        )

    def validation_step(self, batch: tuple[Tensor, list[Tensor]], batch_idx: int) -> None:
        if len(batch[0]):
            self.metrics.update(self.model(batch[0]), self._present(batch))

    def test_step(self, batch: tuple[Tensor, list[Tensor]], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def _present(self, batch: tuple[Tensor, list[Tensor]]) -> Tensor:
        images, labels = batch
        present = torch.zeros(len(images), len(self.metrics.classes), device=images.device)
        for line, of_image in enumerate(labels):
            present[line, of_image - 1] = 1
        return present


class LabelsAlone:
    """The labels of boxes for a target; the image is transformed as in classification."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.transform(image), target["labels"].unique()


def collate(samples: list[Any]) -> tuple[Tensor, list[Tensor]]:
    readable = [sample for sample in samples if sample is not None]
    images = torch.stack([image for image, _ in readable]) if readable else torch.zeros(0, 3, 1, 1)
    return images, [labels for _, labels in readable]


def _open(root: Path, split: str, *, training: bool, **options: Any) -> ImageSet:
    return VOCDetection(root, split, **options)


class MultiLabelTask(ClassificationTask):
    """Classifiers of several classes at once."""

    recipe = MultiLabelRecipe
    layouts = {"voc": voc(_open, "Main")}  # noqa: RUF012
    columns = {"AP": "mAP"}  # noqa: RUF012

    def transforms(self, recipe: Any, *, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
        return LabelsAlone(super().transforms(recipe, training=training))

    def collate(self, *, training: bool) -> Callable[[list[Any]], Any]:
        return collate

    def module(self, recipe: Any, model: nn.Module, classes: Sequence[str]) -> Any:
        return MultiLabelModule(model, classes=classes, **self.training_options(recipe, model))

    @torch.inference_mode()
    def infer(self, model: nn.Module, image: Tensor, recipe: Any, device: torch.device | str) -> Tensor:
        """The probability of each class, [C]."""
        return model(self.as_seen(recipe, image)[None].to(device))[0].sigmoid().cpu()

    def draw(self, image: Tensor, found: Tensor, classes: Sequence[str], *, threshold: float) -> list[Image.Image]:
        return [to_pil_image(image)]

    def records(self, found: Tensor, classes: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        return [{"scores": dict(zip(classes, found.tolist(), strict=True))}]

    def agreement(self, model: nn.Module, other: nn.Module, recipe: Any, image: Tensor) -> Agreement:
        """Every probability must be the same up to 1e-3."""
        ours, theirs = (self.infer(each, image, recipe, "cpu") for each in (model, other))
        apart = float((ours - theirs).abs().max())
        return Agreement(apart <= 1e-3, apart)


TASK = MultiLabelTask()
