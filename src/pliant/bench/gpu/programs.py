"""Steps that run whole programs for a limited time: `pliant demo`, and recipes in mixed precision on drawn digits."""

from __future__ import annotations

import csv
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pliant.bench.gpu.outside import run
from pliant.bench.gpu.steps import Place, Results, Step

_DEMO_SECONDS, _RECIPE_SECONDS = 100, 90
_DEMO_STEPS, _RECIPE_STEPS = 200, 40
RECIPES = ("voc.faster_rcnn_deform", "voc.deeplab_deform")


def steps(place: Place) -> Iterator[Step]:
    """Yield the recipes, then the demo."""
    for recipe in RECIPES:
        for precision in ("bf16-mixed", "16-mixed"):
            run_it = partial(_recipe, recipe, precision)
            yield Step("training", f"training by {recipe}, {precision}", _RECIPE_SECONDS, run_it)
    yield Step("training", "training by pliant demo", _DEMO_SECONDS, _demo)


def _demo(place: Place) -> Results:
    number = 1 if place.tiny else _DEMO_STEPS
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pliant", "demo", "--steps", str(number), "--out", str(Path(folder) / "demo")]
        start = time.perf_counter()
        ended = run(command, _DEMO_SECONDS)
        seconds = round(time.perf_counter() - start, 1)
    yield {"key": {"program": "demo", "steps": number}, "seconds": seconds, "right": ended["status"] == 0} | ended


def _recipe(recipe: str, precision: str, place: Place) -> Results:
    from pliant.data.glyphs_folder import write_glyphs

    number = 1 if place.tiny else _RECIPE_STEPS
    small = "timm/resnet10t" if place.tiny else "resnet50"
    side = 64 if place.tiny else 400
    settings: dict[str, Any] = {
        "precision": precision, "backbone": small, "weights": "random", "frozen": "false", "max_steps": number,
        "batch_size": 2 if place.tiny else 4, "short_side": side, "max_side": side,
        "accelerator": "gpu" if place.on_gpu else "cpu", "lr": 1e-4, "workers": 0 if place.tiny else 4,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "run"
        write_glyphs(data, {"train": 4 if place.tiny else 64, "test": 2}, size=max(side, 112))
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "pliant", "train", recipe, "--data", str(data), "--run", str(out), *words]
        start = time.perf_counter()
        ended = run(command, _RECIPE_SECONDS)
        seconds = round(time.perf_counter() - start, 1)
        losses = _losses(out / "train.csv")
    finite = bool(losses) and all(map(math.isfinite, losses))
    found = {"first_loss": losses[0] if finite else None, "last_loss": losses[-1] if finite else None}
    yield (
        {
            "key": {"recipe": recipe, "precision": precision, "steps": number},
            "seconds": seconds,
            "steps_done": len(losses),
            "right": finite and ended["status"] == 0,
        }
        | found
        | ended
    )


def _losses(path: Path) -> list[float]:
    """Read the loss of each step from a run's `train.csv`."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [float(line["loss"]) for line in csv.DictReader(file) if line.get("loss")]
