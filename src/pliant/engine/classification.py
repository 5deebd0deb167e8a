"""Training and evaluation of an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from pliant.engine.metrics import ClassificationMetrics, require_ids
from pliant.engine.training import TrainingModule
from pliant.schedule import Schedule


class ClassificationModule(TrainingModule):
    """A classifier in training.

    A batch is images, float [N, 3, H, W] in 0..1, and labels, int64 [N].

    Args:
        model: Maps images [N, 3, H, W] to logits [N, C].
        schedule: The learning rate over the steps.
        classes: The C names.
        seed: Seed of the run.
        lr_mult: See `pliant.param_groups`.
    """

    monitor = "top1"
    metrics: ClassificationMetrics

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        classes: Sequence[str],
        *,
        seed: int = 0,
        lr_mult: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, schedule, ClassificationMetrics(classes), seed=seed, lr_mult=lr_mult)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        require_ids("labels", labels, len(self.metrics.classes))
        return self.total_loss({"loss_class": functional.cross_entropy(self.model(images).float(), labels)})

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        if len(images):  # none is left of a batch of damaged images
            self.metrics.update(self.model(images), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        if len(images):
            scores = self.model(images)
            self.metrics.update(scores, labels)
            for probabilities, label in zip(scores.float().softmax(dim=1).cpu(), labels.tolist(), strict=True):
                self.extremes.add(float(probabilities[label]), probabilities)
