"""A training of a moment, in this process, for tests that break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pliant.engine import Schedule, SegmentationModule
from pliant.engine.fitting import FitSettings, fit
from pliant.engine.segmentation import collate_evaluation, collate_training
from pliant.runs.folder import RunFolder


class Network(nn.Module):
    """Six weights, and 200 KB beside them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 1)
        self.register_buffer("ballast", torch.zeros(50_000))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images)}


class Pictures:
    """Four pictures of one colour; the third is not finite if it is broken."""

    def __init__(self, broken: bool) -> None:
        self.paths = [Path(f"{index}.png") for index in range(4)]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        value = torch.nan if self.broken and index == 2 else 0.1 * index
        return torch.full((3, 4, 5), value), torch.full((4, 5), index % 2)


class Data:
    """What `fit` needs."""

    validation = None
    collate_train = staticmethod(collate_training)
    collate_evaluation = staticmethod(collate_evaluation)

    def __init__(self, broken: bool) -> None:
        self.train = Pictures(broken)


def run_to(folder: Path, steps: int = 6, broken: bool = False, watch: Callable[[int], None] | None = None) -> RunFolder:
    """Train in this process, from the start or from where the run is, with a checkpoint after every step."""
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder, {"recipe": "tiny"})
    module = SegmentationModule(Network(), Schedule(max_steps=steps, lr=0.1), ["a", "b"])
    settings = FitSettings(batch_size=2, checkpoint_every=1, accelerator="cpu")
    fit(module, Data(broken), run, settings, {"recipe": "tiny"}, watch=watch)
    return run
