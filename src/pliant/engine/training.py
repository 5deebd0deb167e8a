"""The Lightning module that all tasks share: optimizer, schedule, loss, validation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn

from pliant import distributed
from pliant.engine.batches import derive_seed
from pliant.engine.extremes import Extremes, RankedImage
from pliant.nn import DeformConv2d
from pliant.schedule import Schedule
from pliant.surgery import param_groups


class Metrics(Protocol):
    """What a module is evaluated by, over the images of all processes."""

    def reset(self) -> None:
        """Forget all images."""

    def compute(self) -> dict[str, Any]:
        """The results as plain numbers, and ``per_class`` with those of each class."""


class TrainingModule(lightning.LightningModule):
    """A model in training under a `Schedule`.

    Random numbers within a step (sampling of boxes, dropout) are seeded from (seed, step), so that a resumed run
    continues as if it had never stopped, and several processes draw the same.

    Args:
        model: The network.
        schedule: The learning rate over the steps.
        metrics: Metrics of a validation or test.
        seed: Seed of the run.
        lr_mult: Learning-rate multipliers by glob pattern of parameter names; see `pliant.param_groups`.

    Attributes:
        results: Results of the last validation or test; empty before.
        losses: The parts of the loss of the last step.
        tested: The worst and the best images of the last test, of all processes, if `extremes` got their scores.
        confusion: Counts of the last test [C, C], rows are the truth; None if its metrics count no classes.
    """

    monitor: str

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        metrics: Metrics,
        *,
        seed: int = 0,
        lr_mult: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.metrics = metrics
        self.seed = seed
        self.lr_mult = lr_mult
        self.results: dict[str, Any] = {}
        self.losses: dict[str, Tensor] = {}
        self.extremes = Extremes()
        self.tested: list[RankedImage] = []
        self.confusion: Tensor | None = None
        self._offsets: dict[str, Tensor] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, DeformConv2d):
                channels = 2 * layer.offset_groups * layer.kernel_size[0] * layer.kernel_size[1]
                # What a hook refers to may not refer to the layer, or the network would keep itself in memory.
                layer.offset_conv.register_forward_hook(partial(_measure, self._offsets, name, channels))

    def mean_offset(self) -> float | None:
        """The mean size of the offsets of deformable convolutions in the last training step.

        Returns:
            Cells of the feature map, along one axis, over all processes; None if the model has no such convolution.
        """
        if not self._offsets:
            return None
        return float(distributed.mean(torch.stack(list(self._offsets.values())).mean()))

    def configure_optimizers(self) -> Any:
        schedule = self.schedule
        groups = param_groups(self.model, schedule.lr, weight_decay=schedule.weight_decay, lr_mult=self.lr_mult)
        optimizer = torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rates of the next step, which differ from the checkpoint's if the schedule was changed."""
        scheduler: Any = self.lr_schedulers()
        groups = scheduler.optimizer.param_groups
        fresh = param_groups(
            self.model, self.schedule.lr, weight_decay=self.schedule.weight_decay, lr_mult=self.lr_mult
        )
        scheduler.base_lrs = [group["lr"] for group in fresh]
        for group, base in zip(groups, scheduler.base_lrs, strict=True):
            group["initial_lr"], group["lr"] = base, base * self.schedule.factor(self.global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, self.global_step))

    def total_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses; their means over all processes are kept for the log.

        Raises:
            FloatingPointError: If it is not finite. (With float16 that can happen on the way to the right
                loss scale, so it is let pass there.)
        """
        total = torch.stack(list(losses.values())).sum()
        means = distributed.mean(torch.stack([total, *losses.values()]).detach())
        self.losses = dict(zip(["loss", *losses], means, strict=True))
        if not torch.isfinite(means[0]) and self.trainer.precision != "16-mixed":
            parts = ", ".join(f"{name} {float(self.losses[name]):g}" for name in losses)
            raise FloatingPointError(
                f"the loss of step {self.global_step + 1} is not finite ({parts}); "
                "a lower learning rate, a warm-up or gradient clipping may help"
            )
        return total

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self.results = self.metrics.compute()
        self.metrics.reset()
        numbers = {key: value for key, value in self.results.items() if isinstance(value, float)}
        for logger in self.loggers:
            logger.log_metrics({f"val/{key}": value for key, value in numbers.items()}, step=self.global_step)

    def on_test_epoch_start(self) -> None:
        self.metrics.reset()
        self.extremes = Extremes()

    def on_test_epoch_end(self) -> None:
        self.results = self.metrics.compute()
        confusion = getattr(self.metrics, "confusion", None)
        self.confusion = None if confusion is None else confusion.compute().cpu()
        self.tested = self.extremes.gathered()
        self.metrics.reset()


def _measure(sizes: dict[str, Tensor], name: str, channels: int, conv: nn.Module, inputs: Any, output: Tensor) -> None:
    """A hook that keeps the mean size of what a convolution in training gives in its first channels.

    With modulation, mask logits follow the offsets.
    """
    if conv.training:
        sizes[name] = output[:, :channels].detach().abs().mean()
