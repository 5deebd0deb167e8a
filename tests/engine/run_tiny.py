"""A tiny detection run for `test_resume`, which runs it in a process of its own so that it can be killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from pliant.engine import DetectionModule, Schedule, callbacks
from pliant.engine.detection import collate_detection
from pliant.engine.fitting import FitSettings, fit
from pliant.runs.folder import RunFolder

STEPS = 12


class Squares:
    """Images with one bright square each, and noise as the random transform."""

    def __init__(self, length: int, noise: float) -> None:
        self.length = length
        self.noise = noise

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        x, y = 4 + 3 * (index % 5), 6 + 4 * (index % 4)
        image = torch.rand(3, 48, 64) * self.noise
        image[:, y : y + 20, x : x + 24] += 0.6
        boxes = torch.tensor([[x, y, x + 24, y + 20]], dtype=torch.float32)
        return image, {"boxes": boxes, "labels": torch.tensor([1]), "image_id": index}


class TinyData:
    train = Squares(7, 0.3)
    validation = Squares(2, 0.0)
    collate_train = staticmethod(collate_detection)
    collate_evaluation = staticmethod(collate_detection)


def detector() -> FasterRCNN:
    """Sixteen channels at stride 8; dropout, and torchvision's random choice of boxes."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    )
    backbone.out_channels = 16  # type: ignore[assignment]
    return FasterRCNN(
        backbone,
        num_classes=2,
        min_size=48,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        rpn_batch_size_per_image=16,
        box_batch_size_per_image=8,
    )


class DieAt(Callback):
    def __init__(self, step: int, by: int) -> None:
        self.step = step
        self.by = by

    def on_train_batch_end(self, trainer: Any, *others: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.by)


def main(folder: str, die_at: int = -1, workers: int = 0, by: int = signal.SIGKILL) -> None:
    """Train from the start or from where the run is; with a step, end there by a signal."""
    torch.set_num_threads(1)
    path = Path(folder)
    run = RunFolder(path) if path.exists() else RunFolder.create(path, {"recipe": "tiny"})
    schedule = Schedule(max_steps=STEPS, lr=0.01, warmup_steps=2, decay_at=(0.75,))
    module = DetectionModule(detector(), schedule, ["square"], seed=3)
    if die_at > 0:
        original = callbacks.Checkpoints.on_train_batch_end

        def then_die(self: callbacks.Checkpoints, trainer: Any, *others: Any) -> None:
            # SIGKILL after all of a step: its rows are written, its checkpoint too if one is due.
            if by == signal.SIGKILL:
                original(self, trainer, *others)
            DieAt(die_at, by).on_train_batch_end(trainer)
            if by != signal.SIGKILL:
                original(self, trainer, *others)

        callbacks.Checkpoints.on_train_batch_end = then_die  # type: ignore[method-assign]
    settings = FitSettings(batch_size=3, workers=workers, checkpoint_every=2, validate_every=5, accelerator="cpu")
    fit(module, TinyData(), run, settings, {"recipe": "tiny", "classes": ["square"]})
