"""The report of the demo: one self-contained page, with its pictures and numbers as files beside it."""

from __future__ import annotations

import base64
import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from pliant.data import Glyphs
from pliant.introspect import (
    Comparison,
    EffectiveDilation,
    SamplingPoints,
    Spread,
    Trace,
    compare_with_plain,
    draw,
    sampling_points,
)
from pliant.introspect.page import PageImage, write_page
from pliant.outputs import Outputs
from pliant.runs.files import write_json

RESULTS, PAGE, EXPLORER = "results.json", "report.html", "look.html"
COMPARISON, PREDICTIONS, SAMPLING, DILATION = (
    "comparison.svg",
    "predictions.png",
    "sampling.png",
    "effective_dilation.svg",
)
FILES = (RESULTS, PAGE, EXPLORER, COMPARISON, PREDICTIONS, SAMPLING, DILATION)
AREAS = (30.0**2, 48.0**2)  # of digits, in square pixels; they divide the digits into thirds: small, medium, large
_SHOWN = 6  # scenes in the figure of predictions
_LAYERS, _STRIDE = 3, 8


@dataclass(frozen=True)
class Result:
    """The results of one network."""

    network: str
    miou: float
    pixel_accuracy: float
    parameters: int
    seconds_per_step: float
    final_loss: float


@dataclass(frozen=True)
class Outcome:
    """The results of the demo.

    Attributes:
        task: Description of what the networks segment.
        settings: Settings of the run, such as `steps` and `seed`.
        results: Results of the networks, with the plain one first and the deformable one last.
        scenes: The held-out scenes.
        images, masks: Their pixels, uint8 `[N, 3, H, W]`, and class ids `[N, H, W]`.
        predicted: The predicted class ids `[N, H, W]` of each network, by its name.
        plain, untrained, trained: The plain network, and the deformable one before and after training.
    """

    task: str
    settings: dict[str, Any]
    results: Sequence[Result]
    scenes: Glyphs
    images: Tensor
    masks: Tensor
    predicted: dict[str, Tensor]
    plain: nn.Module
    untrained: nn.Module
    trained: nn.Module


@dataclass(frozen=True)
class Figure:
    """A figure of the page: a picture, a table or both, with a caption."""

    title: str
    caption: str
    picture: Path | None = None
    alt: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        assert self.picture is not None
        kind = {".png": "image/png", ".svg": "image/svg+xml"}[self.picture.suffix]
        return f"data:{kind};base64,{base64.b64encode(self.picture.read_bytes()).decode()}"


def write_report(outputs: Outputs, outcome: Outcome) -> Path:
    """Measure the trained networks, and write pictures, ``results.json``, ``look.html`` and ``report.html``.

    Args:
        outputs: The files of the demo, `FILES`.
        outcome: The results of the demo.

    Returns:
        The path of the page, which needs no other file and no internet connection.
    """
    with outputs.writing(*FILES) as places:
        _write_files(places[0].parent, outcome)
    return outputs.folder / PAGE


def _write_files(out: Path, outcome: Outcome) -> None:
    dilation = _effective_dilation(outcome)
    cost = compare_with_plain(outcome.trained, outcome.images[:1].float() / 255, plain=outcome.plain)
    about = {
        "pliant": pliant.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    figures = [
        _comparison(out, outcome),
        _predictions(out, outcome),
        _sampling(out, outcome),
        _dilation(out, outcome, dilation),
        _cost(outcome, cost),
    ]
    write_json(
        out / RESULTS,
        {
            "settings": outcome.settings,
            "about": about,
            "results": [asdict(result) for result in outcome.results],
            "effective_dilation": {
                layer: {group: spread._asdict() for group, spread in groups.items()}
                for layer, groups in dilation.items()
            },
            "cost": {"plain": cost.plain._asdict(), "deformable": cost.deformable._asdict(), "ratio": cost.time_ratio},
        },
    )
    _write_explorer(out / EXPLORER, outcome)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_template())
    page = template.render(
        task=outcome.task,
        settings=outcome.settings,
        figures=figures,
        explorer=(out / EXPLORER).read_text(encoding="utf-8"),
        about=about,
        command=f"pliant demo --seed {outcome.settings['seed']} --steps {outcome.settings['steps']}",
    )
    (out / PAGE).write_text(page, encoding="utf-8")


def _template() -> str:
    return files("pliant.commands.demo").joinpath("report.html").read_text(encoding="utf-8")


def _comparison(out: Path, outcome: Outcome) -> Figure:
    results = outcome.results
    path = out / COMPARISON
    draw.bars(path, [(result.network, result.miou) for result in results], "mIoU (%)")
    last = results[-1]
    against = " and ".join(f"{last.miou - other.miou:+.1f} against the {other.network} one" for other in results[:-1])
    return Figure(
        "Which network segments best",
        f"Mean intersection over union of {len(outcome.scenes.classes)} classes on {len(outcome.scenes)} held-out "
        f"scenes, in percent; longer is better. The {last.network} network reaches {last.miou:.1f}: {against}. "
        "These are results of one seed; runs with other seeds show how much of a difference is chance.",
        path,
        "Bars: " + ", ".join(f"{result.network} {result.miou:.1f} percent" for result in results),
        ("network", "mIoU", "pixel accuracy", "loss", "parameters", "time of a step"),
        [
            (
                result.network,
                f"{result.miou:.1f}",
                f"{result.pixel_accuracy:.1f}",
                f"{result.final_loss:.3f}",
                f"{result.parameters:,}",
                f"{result.seconds_per_step / results[0].seconds_per_step:.2f} × plain",
            )
            for result in results
        ],
    )


def _predictions(out: Path, outcome: Outcome) -> Figure:
    path = out / PREDICTIONS
    columns = [("truth", list(outcome.masks[:_SHOWN]))]
    columns += [(name, list(ids[:_SHOWN])) for name, ids in outcome.predicted.items()]
    draw.segmentations(path, list(outcome.images[:_SHOWN]), columns, outcome.scenes.classes)
    return Figure(
        "What the networks see",
        "The first held-out scenes, with a colour for each class. A correctly segmented digit has a single colour, "
        "that of the column 'truth'; a network that sees too small a part of a large digit gives it several.",
        path,
        "One row for each scene: the image, the true classes, and the classes that each network predicted",
    )


def _sampling(out: Path, outcome: Outcome) -> Figure:
    """Draw what units on the largest digit, the smallest one and the background read, before and after training."""
    path = out / SAMPLING
    rows, reach = [], []
    for name, index, at in places(outcome.scenes):
        image = torch.from_numpy(outcome.scenes.scene(index).image)
        points = [
            sampling_points(model, image / 255, at, depth=_LAYERS) for model in (outcome.untrained, outcome.trained)
        ]
        rows.append((name, image, points))
        reach.append(f"{_reach(points[0]):.0f} to {_reach(points[1]):.0f} on the {name}")
    draw.sampling(path, rows, ("before training", "after training"))
    return Figure(
        "Where a unit reads",
        "A unit of the third deformable layer (cross) and the 729 places that it reads through all three layers "
        "(dots). Before training they form the grid of a plain network. After training they show how far the "
        f"unit reaches, and whether it keeps to the digit. Their mean distance from their centre, in pixels, went "
        f"from {', from '.join(reach)}.",
        path,
        "Three scenes with the places that one unit reads, before and after training",
    )


def _reach(points: SamplingPoints) -> float:
    inside = points.pixels[points.inside]
    return float((inside - inside.mean(0)).norm(dim=1).mean())


def _effective_dilation(outcome: Outcome) -> dict[str, dict[str, Spread]]:
    measure = EffectiveDilation(outcome.trained, AREAS)
    for index, image in enumerate(outcome.images):
        measure.update(image.float() / 255, torch.from_numpy(outcome.scenes.scene(index).boxes))
    return measure.compute()


def _dilation(out: Path, outcome: Outcome, spreads: dict[str, dict[str, Spread]]) -> Figure:
    path = out / DILATION
    named = {f"layer {number}": groups for number, groups in enumerate(spreads.values(), 1)}
    draw.effective_dilation(path, named)
    small, large = (round(area**0.5) for area in AREAS)
    groups = list(next(iter(named.values())))
    rows = [
        (
            layer,
            *(f"{found[group].mean:.2f} ± {found[group].std:.2f}" if found[group].number else "–" for group in groups),
        )
        for layer, found in named.items()
    ]
    return Figure(
        "Effective dilation by object size",
        f"How far apart the samples of a filter lie, in cells of {_STRIDE} pixels: 1 is a plain filter. Mean and "
        f"standard deviation over all places of {len(outcome.images)} scenes; a digit is small below {small}² pixels "
        f"and large above {large}². In the paper's table 2, filters on large objects spread farther than filters on "
        "small ones.",
        path,
        "The effective dilation of each layer on small, medium and large digits and on the background",
        ("", *groups),
        rows,
    )


def _cost(outcome: Outcome, cost: Comparison) -> Figure:
    sides = cost.plain, cost.deformable
    size = " × ".join(map(str, outcome.images.shape[-2:]))
    return Figure(
        "What it costs",
        f"One forward pass on an image of {size} pixels, threads: {torch.get_num_threads()}; the deformable network "
        f"takes {cost.time_ratio:.2f} times as long (median over alternating passes). The added cost is that of the "
        "branches that predict the offsets, and of bilinear sampling.",
        head=("", "plain", "deformable"),
        rows=[
            ("parameters", *(f"{side.parameters:,}" for side in sides)),
            ("multiply-adds", *(f"{side.multiply_adds / 1e6:.1f} M" for side in sides)),
            ("time of the pass", *(f"{1e3 * side.seconds:.1f} ms" for side in sides)),
            ("memory of the pass", *(f"{side.peak_bytes / 2**20:.2f} MiB" for side in sides)),
        ],
    )


def _write_explorer(path: Path, outcome: Outcome) -> None:
    """Write the page of `pliant look` for the scenes of `_sampling`."""
    starts = {index: at for _, index, at in reversed(places(outcome.scenes))}
    colours = torch.tensor([[int(name[place : place + 2], 16) for place in (1, 3, 5)] for name in draw.COLOURS])
    images = []
    for index, (row, column) in sorted(starts.items()):
        image, ids = outcome.images[index], outcome.predicted["deformable"][index].long()
        overlay = torch.cat((colours[ids].permute(2, 0, 1), 110 * (ids > 0)[None])).byte()
        start = ((row + 0.5) * _STRIDE, (column + 0.5) * _STRIDE)
        trace = Trace(outcome.trained, image.float() / 255)
        picture = F.interpolate(image[None].float(), scale_factor=4, mode="nearest")[0].byte()
        images.append(PageImage(f"scene {index}", picture, trace, start=start, overlay=overlay))
    write_page(path, "the deformable network of pliant demo", images)


def places(scenes: Glyphs) -> list[tuple[str, int, tuple[int, int]]]:
    """A large digit, a small one, and the background, each as (name, scene, cell of the map of stride 8)."""
    boxes = [
        (float((box[2] - box[0]) * (box[3] - box[1])), index, box)
        for index in range(min(64, len(scenes)))
        for box in scenes.scene(index).boxes
    ]
    found = []
    for name, (_, index, box) in (
        ("large digit", max(boxes, key=lambda entry: entry[0])),
        ("small digit", min(boxes, key=lambda entry: entry[0])),
    ):
        middle = (int((box[1] + box[3]) / 2 / _STRIDE), int((box[0] + box[2]) / 2 / _STRIDE))
        found.append((name, index, middle))
    scene = scenes.scene(found[0][1])
    empty = F.max_pool2d(torch.from_numpy(scene.mask).float()[None], _STRIDE)[0] == 0  # [H / 8, W / 8]
    inner = torch.zeros_like(empty)
    inner[3:-3, 3:-3] = True
    cells = (empty & inner).nonzero()
    cells = cells if len(cells) else empty.nonzero()
    row, column = cells[len(cells) // 2].tolist() if len(cells) else (0, 0)
    return [*found, ("background", found[0][1], (row, column))]
