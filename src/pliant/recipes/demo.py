"""The demo: a plain, a dilated and a deformable network on the same scenes, side by side.

Everything is in this file: the network, the training loop, the comparison. The three networks differ in one
argument of their three 3x3 layers, and start from the same weights; data, order, steps and schedule are the same.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import pliant
from pliant.data import Glyphs
from pliant.engine.metrics import SegmentationMetrics
from pliant.introspect import SamplingPoints, draw, sampling_points

NETWORKS = ("plain", "dilated", "deformable")
STEPS, BATCH, TRAIN_SCENES, TEST_SCENES = 1200, 16, 2000, 256
SCENES: dict[str, Any] = {"size": 112, "digits": (1, 3), "sides": (24, 104), "warp": 0.5}
TASK = "digits of {} to {} pixels".format(*SCENES["sides"])
BACKGROUND_WEIGHT = 0.3  # nine pixels in ten are background; the same for all three networks
OFFSET_LR_MULT = 0.1  # AdamW takes steps of the learning rate's size however small the gradient is
MARKER = "results.json"


class Segmenter(nn.Module):
    """A stem to stride 8, three residual 3x3 layers, and one score a class: `[N, 3, H, W]` to `[N, classes, H, W]`."""

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
    """One of the three networks; with the same seed all have the same weights but for the offset branches."""
    torch.manual_seed(seed)
    model = Segmenter(classes, dilation=2 if kind == "dilated" else 1)
    if kind == "deformable":
        pliant.deform(model, "layers.*.0")
    return model


@dataclass(frozen=True)
class Result:
    """What one network came to."""

    network: str
    miou: float
    pixel_accuracy: float
    parameters: int
    seconds_per_step: float
    final_loss: float


def run(out: Path, *, steps: int | None = None, seed: int = 0) -> None:
    """Train the three networks, print the comparison, and write pictures and numbers into a folder.

    Args:
        out: the folder; new, empty, or of an earlier demo.
        steps: of each network; by default as many as two cores do in some minutes.
        seed: of the scenes, the weights and the order of the batches.

    Raises:
        ValueError: when the folder holds something else.
    """
    _claim(out)
    steps = STEPS if steps is None else steps
    console = Console()
    console.print(f"Pliant {pliant.__version__}: three networks, {steps} steps of {BATCH} scenes each, seed {seed}")
    train = Glyphs(min(TRAIN_SCENES, steps * BATCH), split="train", seed=seed, **SCENES)
    test = Glyphs(TEST_SCENES, split="test", seed=seed, **SCENES)
    with Progress(console=console) as progress:
        drawing = progress.add_task("drawing the scenes", total=None)
        images, masks = train.stack()
        test_images, test_masks = test.stack()
        progress.update(drawing, total=1, completed=1)
        trained, results, untrained = {}, [], build("deformable", len(test.classes), seed)
        for kind in NETWORKS:
            model = build(kind, len(test.classes), seed)
            bar = progress.add_task(f"training: {kind}", total=steps)
            seconds, loss = _train(model, images, masks, steps, seed, partial(progress.advance, bar))
            trained[kind] = predict(model, test_images)
            results.append(_judge(kind, model, trained[kind], test_masks, test.classes, seconds, loss))
    console.print(_table(results))
    _write(out, results, test_images, test_masks, test.classes, trained, {"seed": seed, "steps": steps})
    _draw_sampling(out / "sampling.png", test, [untrained, model])
    console.print(f"Pictures and numbers are in {out}: open {out / 'report.md'}")


def _train(
    model: Segmenter, images: Tensor, masks: Tensor, steps: int, seed: int, advance: Callable[[], None]
) -> tuple[float, float]:
    """AdamW on one cycle, the loss at every fourth pixel.

    Returns:
        The seconds that a step took in the median, and the mean loss of the last tenth of the steps.
    """
    groups = pliant.param_groups(model, lr=5e-3, weight_decay=1e-2, offset_lr_mult=OFFSET_LR_MULT)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=max(steps, 2)
    )
    order = torch.Generator().manual_seed(seed)
    weight = torch.ones(model.score.out_channels)
    weight[0] = BACKGROUND_WEIGHT
    seconds, losses = [], []
    model.train()
    for _ in range(steps):
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
        advance()
    last = losses[-max(1, steps // 10) :]
    return float(torch.tensor(seconds).median()), sum(last) / len(last)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Class ids `[N, H, W]` of uint8 images `[N, 3, H, W]`."""
    model.eval()
    return torch.cat([model(batch.float() / 255).argmax(1) for batch in images.split(64)])


def _judge(
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


def _draw_sampling(path: Path, test: Glyphs, models: list[nn.Module]) -> None:
    """A unit on the largest digit, on the smallest, and on the background, before and after training."""
    rows = []
    for name, index, at in _places(test):
        image = torch.from_numpy(test.scene(index).image)
        points: list[SamplingPoints] = [sampling_points(model, image / 255, at, depth=3) for model in models]
        rows.append((name, image, points))
    draw.sampling(path, rows, ("before training", "after training"))


def _places(test: Glyphs) -> list[tuple[str, int, tuple[int, int]]]:
    """(name, scene, cell of the map of stride 8) for a large digit, a small one, and the background."""
    boxes = [
        (float((box[2] - box[0]) * (box[3] - box[1])), index, box)
        for index in range(min(64, len(test)))
        for box in test.scene(index).boxes
    ]
    found = []
    for name, (_, index, box) in (
        ("large digit", max(boxes, key=lambda entry: entry[0])),
        ("small digit", min(boxes, key=lambda entry: entry[0])),
    ):
        found.append((name, index, (int((box[1] + box[3]) / 16), int((box[0] + box[2]) / 16))))
    scene = test.scene(found[0][1])
    empty = F.max_pool2d(torch.from_numpy(scene.mask).float()[None], 8)[0] == 0  # [H / 8, W / 8]
    inner = torch.zeros_like(empty)
    inner[3:-3, 3:-3] = True
    cells = (empty & inner).nonzero()
    cells = cells if len(cells) else empty.nonzero()
    row, column = cells[len(cells) // 2].tolist() if len(cells) else (0, 0)
    return [*found, ("background", found[0][1], (row, column))]


def _write(
    out: Path,
    results: list[Result],
    images: Tensor,
    masks: Tensor,
    classes: tuple[str, ...],
    predicted: dict[str, Tensor],
    settings: dict[str, int],
) -> None:
    columns: list[tuple[str, Sequence[Tensor]]] = [
        ("truth", list(masks[:6])),
        *((kind, list(predicted[kind][:6])) for kind in NETWORKS),
    ]
    draw.segmentations(out / "predictions.png", list(images[:6]), columns, classes)
    draw.bars(out / "comparison.png", [(result.network, result.miou) for result in results], "mIoU (%)")
    record = {
        "settings": {**settings, **SCENES, "batch": BATCH, "train_scenes": TRAIN_SCENES, "test_scenes": TEST_SCENES},
        "versions": {"pliant": pliant.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "results": [asdict(result) for result in results],
    }
    (out / MARKER).write_text(json.dumps(record, indent=2) + "\n")
    lines = [
        "# Plain, dilated, deformable",
        "",
        f"Scenes of handwritten {TASK}; {settings['steps']} steps of {BATCH} scenes for each network, "
        f"seed {settings['seed']}, {TEST_SCENES} held-out scenes of other handwriting.",
        "",
        "| network | mIoU | pixel accuracy | parameters |",
        "| --- | --- | --- | --- |",
        *(f"| {r.network} | {r.miou:.1f} | {r.pixel_accuracy:.1f} | {r.parameters:,} |" for r in results),
        "",
        "![mIoU of the three networks](comparison.png)",
        "",
        "![scenes, truth and predictions](predictions.png)",
        "",
        "Where a unit (green) of the third deformable layer reads through all three layers, 729 places (red), before "
        "and after training:",
        "",
        "![sampling places](sampling.png)",
        "",
    ]
    (out / "report.md").write_text("\n".join(lines))


def _claim(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the demo needs a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ValueError(f"{out} holds other files; the demo writes into a new folder or over an earlier demo")
    out.mkdir(parents=True, exist_ok=True)
