"""Training and judging a detector of torchvision's convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pliant.engine.metrics import DetectionMetrics
from pliant.engine.schedule import Schedule
from pliant.engine.training import TrainingModule

DetectionBatch = tuple[list[Tensor], list[dict[str, Any]]]


class DetectionModule(TrainingModule):
    """A detector in training.

    A batch is a list of images, each float [3, H, W] in 0..1, and a list of targets, each a dict with
    ``boxes`` [L, 4] (x0, y0, x1, y1) and ``labels`` [L] (1 to C); to be judged also ``image_id``, and perhaps
    ``difficult``, ``iscrowd``, ``area``.

    Args:
        model: In training it maps images and targets to a dict of losses, else images to a list of dicts of
            ``boxes``, ``labels`` and ``scores``.
        schedule: Of the optimizer.
        classes: The C foreground names.
        seed: Of the run.
        lr_mult: See `pliant.param_groups`.

    Attributes:
        found: What the last test found: for each image its ``image_id`` and the detections, on the CPU.
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
        self.found: list[tuple[int, dict[str, Tensor]]] = []

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        images, targets = batch
        return self.total_loss(self.model(images, targets))

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self._judge(*batch)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.found = []

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        for target, found in zip(batch[1], self._judge(*batch), strict=True):
            self.found.append((int(target["image_id"]), {key: value.cpu() for key, value in found.items()}))

    def _judge(self, images: list[Tensor], targets: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        if not images:  # none is left of a batch of damaged images
            return []
        found: list[dict[str, Tensor]] = self.model(images)
        self.metrics.update(found, targets)
        return found


def collate_detection(samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> DetectionBatch:
    """Samples of a data set as a batch; images keep their sizes."""
    return [image for image, _ in samples], [target for _, target in samples]
