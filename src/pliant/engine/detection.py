"""Training and evaluation of a detector of torchvision's convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pliant.engine.metrics import DetectionMetrics, EvaluatedImage
from pliant.engine.training import TrainingModule
from pliant.schedule import Schedule

DetectionBatch = tuple[list[Tensor], list[dict[str, Any]]]


class DetectionModule(TrainingModule):
    """A detector in training.

    A batch is a list of images, each float [3, H, W] in 0..1, and a list of targets, each a dict with
    ``boxes`` [L, 4] (x0, y0, x1, y1) and ``labels`` [L] (1 to C); in evaluation also ``image_id``, and perhaps
    ``difficult``, ``iscrowd``, ``area``.

    Args:
        model: In training it maps images and targets to a dict of losses, else images to a list of dicts of
            ``boxes``, ``labels`` and ``scores``.
        schedule: The learning rate over the steps.
        classes: The C foreground names.
        seed: Seed of the run.
        lr_mult: See `pliant.param_groups`.

    Attributes:
        evaluated: Detections and truth of the last test by ``image_id``, of all processes, on the CPU.
    """

    monitor = "AP"
    metrics: DetectionMetrics

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        classes: Sequence[str],
        *,
        seed: int = 0,
        lr_mult: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, schedule, DetectionMetrics(classes), seed=seed, lr_mult=lr_mult)
        self.evaluated: dict[int, EvaluatedImage] = {}

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        images, targets = batch
        return self.total_loss(self.model(images, targets))

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self._update(*batch)

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self._update(*batch)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.metrics.with_curves = True

    def on_test_epoch_end(self) -> None:
        self.evaluated = {image.image_id: image for image in self.metrics.evaluated()}
        super().on_test_epoch_end()
        self.metrics.with_curves = False

    @property
    def found(self) -> dict[int, dict[str, Tensor]]:
        """The detections of the last test by ``image_id``."""
        return {image_id: image.found for image_id, image in self.evaluated.items()}

    def _update(self, images: list[Tensor], targets: list[dict[str, Any]]) -> None:
        if images:  # none is left of a batch of damaged images
            self.metrics.update(self.model(images), targets)


def collate_detection(samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> DetectionBatch:
    """Samples of a data set as a batch; images keep their sizes."""
    return [image for image, _ in samples], [target for _, target in samples]
