"""Trains offsets alone, for docs/offsets-alone.md: python docs/offsets_alone.py. It writes the numbers and the picture.

A network learns small digits and is then frozen. On large, warped digits it fails. Four copies of it are adapted to
these: one by the offset branches that `pliant.deform` adds, three by controls that train something else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import pliant
from pliant.bench import machine
from pliant.commands.demo.run import BACKGROUND_WEIGHT, Segmenter, predict
from pliant.constants import COLOURS
from pliant.data import Glyphs
from pliant.engine.metrics import SegmentationMetrics

HERE = Path(__file__).parent
NUMBERS = HERE / "results" / "offsets-alone.json"
SMALL: dict[str, Any] = {"size": 112, "digits": (1, 3), "sides": (24, 40), "warp": 0.3}
LARGE: dict[str, Any] = {"size": 112, "digits": (1, 1), "sides": (72, 104), "warp": 1.0}
SCENES, TEST_SCENES, BATCH = 1000, 128, 16
STEPS, ADAPTING_STEPS = 600, 300
LEARNING_RATES = (1e-3, 4e-3)


class WithBranch(nn.Module):
    """A frozen layer with a small plain branch beside it, which is zero at first."""

    def __init__(self, layer: nn.Module, width: int, inner: int) -> None:
        super().__init__()
        self.layer = layer
        self.branch = nn.Sequential(nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 1))
        nn.init.zeros_(self.branch[1].weight)
        nn.init.zeros_(self.branch[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.branch(x)


def offsets(model: Segmenter) -> Iterable[nn.Parameter]:
    pliant.deform(model, "layers.*.0")
    return [value for name, value in model.named_parameters() if "offset_conv" in name]


def plain_branch(model: Segmenter) -> Iterable[nn.Parameter]:
    for block in model.layers:
        assert isinstance(block, nn.Sequential)
        block[0] = WithBranch(block[0], 64, 16)
    return [value for name, value in model.named_parameters() if ".branch." in name]


def norms(model: Segmenter) -> Iterable[nn.Parameter]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [value for layer in layers for value in layer.parameters()]


def last_layer(model: Segmenter) -> Iterable[nn.Parameter]:
    return model.score.parameters()


ADAPTERS: dict[str, Callable[[Segmenter], Iterable[nn.Parameter]]] = {
    "offsets": offsets,
    "plain branch": plain_branch,
    "norms": norms,
    "last layer": last_layer,
}


def train(model: Segmenter, values: Iterable[nn.Parameter], scenes: Any, steps: int, lr: float, seed: int) -> None:
    """Train some parameters; the statistics of batch norms change only if all parameters are trained."""
    images, masks = scenes
    trained = list(values)
    model.requires_grad_(False)
    for value in trained:
        value.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    weight = torch.ones(model.score.out_channels)
    weight[0] = BACKGROUND_WEIGHT
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=order)
        scores = F.interpolate(model.scores(images[chosen].float() / 255), scale_factor=2, mode="bilinear")
        loss = F.cross_entropy(scores, masks[chosen, 2::4, 2::4].long(), weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def miou(model: nn.Module, test: Glyphs) -> float:
    images, masks = test.stack()
    metrics = SegmentationMetrics(test.classes)
    metrics.update(predict(model, images).flatten(0, 1), masks.flatten(0, 1))
    return 100 * float(metrics.compute()["mIoU"])


def run(seed: int, steps: int, adapting_steps: int) -> dict[str, Any]:
    """The mIoU of the frozen network on small and on large digits, and of each adapted one on large digits."""
    small, large = (Glyphs(SCENES, seed=seed, **scenes) for scenes in (SMALL, LARGE))
    small_test, large_test = (Glyphs(TEST_SCENES, split="test", seed=seed, **scenes) for scenes in (SMALL, LARGE))
    torch.manual_seed(seed)
    base = Segmenter(len(small.classes))
    base.train()
    train(base, base.parameters(), small.stack(), steps, 5e-3, seed)
    found: dict[str, Any] = {"seed": seed, "small": miou(base, small_test), "large": miou(base, large_test)}
    scenes = large.stack()
    for name, adapt in ADAPTERS.items():
        for lr in LEARNING_RATES:
            torch.manual_seed(seed)
            model = deepcopy(base).eval()
            values = list(adapt(model))
            train(model, values, scenes, adapting_steps, lr, seed)
            result = {"lr": lr, "mIoU": miou(model, large_test), "trained": sum(value.numel() for value in values)}
            found.setdefault(name, []).append(result)
    return found


def best(found: list[dict[str, Any]], name: str) -> tuple[list[float], float, int]:
    """The mIoU of each seed at the learning rate whose mean is the highest, that rate, and the trained parameters."""
    rates = {lr: [one["mIoU"] for run in found for one in run[name] if one["lr"] == lr] for lr in LEARNING_RATES}
    lr = max(rates, key=lambda rate: statistics.mean(rates[rate]))
    return rates[lr], lr, found[0][name][0]["trained"]


def table(found: list[dict[str, Any]]) -> str:
    """The rows of the page: mIoU on large digits, mean and standard deviation over seeds."""
    lines = ["| trained | parameters | learning rate | mIoU |", "| --- | ---: | ---: | ---: |"]
    lines.append(f"| nothing | 0 | | {shown([run['large'] for run in found])} |")
    for name in ADAPTERS:
        values, lr, trained = best(found, name)
        lines.append(f"| {name} | {trained:,} | {lr:g} | {shown(values)} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def draw(found: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    names = ["frozen", *ADAPTERS]
    for row, name in enumerate(names):
        values = [run["large"] for run in found] if name == "frozen" else best(found, name)[0]
        colour = COLOURS["vermilion"] if name == "offsets" else COLOURS["blue"]
        axis.barh(row, statistics.mean(values), color=colour, alpha=0.35)
        axis.plot(values, [row] * len(values), "o", color=colour, ms=4)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("mIoU on large, warped digits, in percent: dots are seeds, bars their means")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--adapting-steps", type=int, default=ADAPTING_STEPS)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of results/ and images/")
    given = parser.parse_args()
    start = time.monotonic()
    found = [run(seed, given.steps, given.adapting_steps) for seed in range(given.seeds)]
    about = {
        "machine": machine.cpu_name(),
        "threads": torch.get_num_threads(),
        "commit": machine.commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.monotonic() - start),
        "steps": given.steps,
        "adapting_steps": given.adapting_steps,
    }
    for folder in ("results", "images"):
        (given.out / folder).mkdir(parents=True, exist_ok=True)
    (given.out / "results" / NUMBERS.name).write_text(json.dumps({**about, "runs": found}, indent=1) + "\n")
    draw(found).savefig(given.out / "images" / "offsets-alone.svg", metadata={"Date": None})
    print(table(found))


if __name__ == "__main__":
    main()
