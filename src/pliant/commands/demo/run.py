"""The demo: a plain, a dilated and a deformable network on the same scenes, side by side.

This file has the network, the training loop and the comparison. The three networks differ
only in their three 3x3 layers. They start from the same weights, and have the same data, order, steps and schedule.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.commands.demo.report import FILES, Outcome, Result, write_report
from pliant.console import Console, Progress, Table, Task
from pliant.data import Glyphs
from pliant.devices import choose_device
from pliant.engine.metrics import SegmentationMetrics
from pliant.outputs import Outputs

NETWORKS = ("plain", "dilated", "deformable")
STEPS, BATCH, TRAIN_SCENES, TEST_SCENES = 1200, 16, 2000, 256
SCENES: dict[str, Any] = {"size": 112, "digits": (1, 3), "sides": (24, 104), "warp": 0.5}
TASK = "digits of {} to {} pixels".format(*SCENES["sides"])
BACKGROUND_WEIGHT = 0.3  # nine pixels in ten are background
OFFSET_LR_MULT = 0.1  # AdamW's steps do not shrink with the gradient, so offsets need a smaller rate


class Segmenter(nn.Module):
    """A stem to stride 8, three residual 3x3 layers, and class scores: `[N, 3, H, W]` to `[N, classes, H, W]`."""

    def __init__(self, classes: int, width: int = 64, dilation: int = 1) -> None:
        super().__init__()
        widths = (3, width // 4, width // 2, width)
        self.stem = nn.Sequential(*(_normalised(nn.Conv2d(a, b, 3, 2, 1, bias=False)) for a, b in pairwise(widths)))
        self.layers = nn.ModuleList(
            _normalised(nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)) for _ in range(3)
        )
        self.score = nn.Conv2d(width, classes, 1)

    def scores(self, images: Tensor) -> Tensor:
        """Class scores at stride 8."""
        x = self.stem(images * 2 - 1)
        for layer in self.layers:
            x = x + layer(x)
        return self.score(x)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.scores(images), size=images.shape[2:], mode="bilinear")


def _normalised(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())


def build(kind: str, classes: int, seed: int) -> Segmenter:
    """Build one of the three networks; those of one seed have the same weights, apart from the offset branches."""
    torch.manual_seed(seed)
    model = Segmenter(classes, dilation=2 if kind == "dilated" else 1)
    if kind == "deformable":
        pliant.deform(model, "layers.*.0")
    return model


def run(out: Path, *, steps: int | None = None, seed: int = 0, device: str | None = None) -> None:
    """Train the three networks, print the comparison, and write a page with figures into a folder.

    Args:
        out: The folder; new, empty, or that of an earlier demo.
        steps: Number of training steps of each network; None for `STEPS`, which take two cores a few minutes.
        seed: Seed of the scenes, the weights and the order of the batches.
        device: The device to train on, such as `"cuda"`; None for a GPU if there is one.

    Raises:
        ValueError: If the folder holds something else.
    """
    chosen = choose_device(device)
    outputs = Outputs(out, FILES, own=True)
    outputs.claim()
    steps = STEPS if steps is None else steps
    console = Console()
    console.print(f"Pliant {pliant.__version__}: three networks, {steps} steps of {BATCH} scenes each, seed {seed}")
    train = Glyphs(min(TRAIN_SCENES, steps * BATCH), split="train", seed=seed, **SCENES)
    test = Glyphs(TEST_SCENES, split="test", seed=seed, **SCENES)
    with Progress() as progress:
        with progress.task("drawing the scenes"):
            images, masks = (stacked.to(chosen) for stacked in train.stack())
            test_images, test_masks = test.stack()
        trained, predicted, results = dict[str, nn.Module](), dict[str, Tensor](), []
        for kind in NETWORKS:
            trained[kind] = model = build(kind, len(test.classes), seed).to(chosen)
            with progress.task(f"training the {kind} network", steps) as task:
                seconds, loss = _train(model, images, masks, steps, seed, task)
            model.cpu()  # all measurements below are made on the CPU
            predicted[kind] = predict(model, test_images)
            results.append(_evaluate(kind, model, predicted[kind], test_masks, test.classes, seconds, loss))
        outcome = Outcome(
            TASK,
            {"seed": seed, "steps": steps, **SCENES, "batch": BATCH, "train_scenes": len(train)},
            results,
            test,
            test_images,
            test_masks,
            predicted,
            plain=trained["plain"],
            untrained=build("deformable", len(test.classes), seed),
            trained=trained["deformable"],
        )
        with progress.task("looking at the networks"):
            page = write_report(outputs, outcome)
    console.print(_table(results))
    console.print(f"Open {page}")


def _train(model: Segmenter, images: Tensor, masks: Tensor, steps: int, seed: int, task: Task) -> tuple[float, float]:
    """Train a network with AdamW and a one-cycle schedule; the loss is taken at every fourth pixel in each direction.

    Returns:
        The median seconds of a step, and the mean loss of the last tenth of the steps.
    """
    groups = pliant.param_groups(model, lr=5e-3, weight_decay=1e-2, offset_lr_mult=OFFSET_LR_MULT)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=max(steps, 2)
    )
    order = torch.Generator().manual_seed(seed)
    weight = torch.ones(model.score.out_channels, device=images.device)
    weight[0] = BACKGROUND_WEIGHT
    seconds, losses = [], []
    model.train()
    for step in range(1, steps + 1):
        start = time.perf_counter()
        chosen = torch.randint(len(images), (BATCH,), generator=order)
        scores = F.interpolate(model.scores(images[chosen].float() / 255), scale_factor=2, mode="bilinear")
        loss = F.cross_entropy(scores, masks[chosen, 2::4, 2::4].long(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        task.update(step, f"loss {losses[-1]:.3f}")
    last = losses[-max(1, steps // 10) :]
    return float(torch.tensor(seconds).median()), sum(last) / len(last)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Class ids `[N, H, W]` of uint8 images `[N, 3, H, W]`."""
    model.eval()
    return torch.cat([model(batch.float() / 255).argmax(1) for batch in images.split(64)])


def _evaluate(
    kind: str, model: nn.Module, ids: Tensor, masks: Tensor, classes: tuple[str, ...], seconds: float, loss: float
) -> Result:
    metrics = SegmentationMetrics(classes)
    metrics.update(ids.flatten(0, 1), masks.flatten(0, 1))
    scores = metrics.compute()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Result(kind, 100 * scores["mIoU"], 100 * scores["pixel_accuracy"], parameters, seconds, loss)


def _table(results: list[Result]) -> Table:
    table = Table(
        title=f"{TASK}, held-out handwriting",
        title_justify="left",
    )
    for column, justify in (("network", "left"), ("mIoU", "right"), ("pixel accuracy", "right"), ("loss", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("parameters", justify="right")
    table.add_column("time of a step", justify="right")
    for result in results:
        table.add_row(
            result.network,
            f"{result.miou:.1f}",
            f"{result.pixel_accuracy:.1f}",
            f"{result.final_loss:.3f}",
            f"{result.parameters:,}",
            f"{result.seconds_per_step / results[0].seconds_per_step:.2f} x plain",
        )
    return table
