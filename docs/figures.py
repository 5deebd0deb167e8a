"""Draws the figures of docs/method.md and docs/showing.md: python docs/figures.py.

The numbers of the method's figures come from the operators themselves.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from pliant import ops
from pliant.constants import COLOURS
from pliant.data import Glyphs
from pliant.pictures.results import draw_boxes, draw_mask

IMAGES = Path(__file__).parent / "images"
CELL = "#cfcdc6"
PLAIN, MOVED, UNIT = (COLOURS[name] for name in ("blue", "vermilion", "orange"))


def taps(dilation: int) -> Tensor:
    """[9, 2]: the places (y, x) that a 3x3 filter reads, from its middle."""
    line = torch.tensor([-1.0, 0.0, 1.0]) * dilation
    return torch.cartesian_prod(line, line)


def read_by(offset: Tensor, dilation: int, size: int = 9) -> Tensor:
    """[size, size]: how much each cell counts in the middle unit's output, by the operator's own gradient."""
    cells = torch.zeros(1, 1, size, size, requires_grad=True)
    everywhere = offset.reshape(1, 18, 1, 1).expand(1, 18, size, size)
    out = ops.deform_conv2d(cells, everywhere, torch.ones(1, 1, 3, 3), padding=dilation, dilation=dilation)
    out[0, 0, size // 2, size // 2].backward()
    assert cells.grad is not None
    return cells.grad[0, 0]


def read_at(places: Tensor, border: str) -> Tensor:
    """[P]: what a map of ones, six cells in a row, gives at these places."""
    ones = torch.ones(1, 1, 1, 6).expand(len(places), 1, 1, 6)
    offset = torch.stack((torch.zeros_like(places), places), 1).reshape(-1, 2, 1, 1).expand(-1, 2, 1, 6)
    return ops.deform_conv2d(ones, offset, torch.ones(1, 1, 1, 1), border=border)[:, 0, 0, 0]


def grids() -> Figure:
    torch.manual_seed(4)
    panels = [
        ("dilation 1", torch.zeros(9, 2), 1),
        ("dilation 2", torch.zeros(9, 2), 2),
        ("dilation 1, moved by offsets", taps(1) * 0.8 + torch.randn(9, 2) * 0.7, 1),
    ]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for axis, (title, offset, dilation) in zip(figure.subplots(1, 3), panels, strict=True):
        share = read_by(offset, dilation)
        cells_of(axis, 9, 9)
        for row, column in share.nonzero().tolist():
            axis.add_patch(
                square(row, column, 1, 1, facecolor=PLAIN, alpha=0.45 * float(share[row, column].clamp(max=1)))
            )
        regular = taps(dilation) + 4.5
        moved = regular + offset
        for (y0, x0), (y1, x1) in zip(regular.tolist(), moved.tolist(), strict=True):
            axis.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-", "color": "#63666c", "lw": 0.8})
        axis.plot(regular[:, 1], regular[:, 0], "o", color=PLAIN, ms=4, mfc="white")
        axis.plot(moved[:, 1], moved[:, 0], "o", color=MOVED if offset.any() else PLAIN, ms=6)
        axis.plot(4.5, 4.5, "+", color="black", ms=9)
        axis.set_title(title, fontsize=10)
    return figure


def borders() -> Figure:
    places = torch.linspace(-2, 7, 361)
    figure = Figure(figsize=(7, 2.3), layout="constrained")
    axis = figure.subplots()
    for cell in range(6):
        axis.axvspan(cell - 0.5, cell + 0.5, color=CELL, alpha=0.55 if cell % 2 else 0.3, lw=0)
    for border, color, style in (("paper", PLAIN, "-"), ("authors", MOVED, "--")):
        out = read_at(places, border)
        axis.plot(places, out, style, color=color, lw=2, label=f'border="{border}"')
    axis.set_xlabel("place, in cells (the map's cells are grey)")
    axis.set_ylabel("value read")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def bins() -> Figure:
    torch.manual_seed(1)
    offset = torch.randn(3, 3, 2) * 0.9
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    x0, y0, w, h = 2, 2, 12, 9
    for axis, title, moves in ((left, "eq. 5", offset * 0), (right, "eq. 6", offset)):
        cells_of(axis, 13, 16)
        axis.add_patch(square(y0, x0, h, w, fill=False, edgecolor="black", lw=1.2, ls=":"))
        for i in range(3):
            for j in range(3):
                dx, dy = 0.1 * w * float(moves[i, j, 0]), 0.1 * h * float(moves[i, j, 1])
                box = (y0 + i * h // 3 + dy, x0 + j * w // 3 + dx, h / 3, w / 3)
                color = MOVED if moves.any() else PLAIN
                axis.add_patch(square(*box, facecolor=color, alpha=0.18))
                axis.add_patch(square(*box, fill=False, edgecolor=color, lw=1.4))
                axis.text(box[1] + box[3] / 2, box[0] + box[2] / 2, f"{i},{j}", ha="center", va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
    return figure


def cells_of(axis: Axes, rows: int, columns: int) -> None:
    for line in range(rows + 1):
        axis.plot([0, columns], [line, line], color=CELL, lw=0.7, zorder=0)
    for line in range(columns + 1):
        axis.plot([line, line], [0, rows], color=CELL, lw=0.7, zorder=0)
    axis.set_xlim(-0.1, columns + 0.1)
    axis.set_ylim(rows + 0.1, -0.1)
    axis.set_aspect("equal")
    axis.axis("off")


def square(row: float, column: float, height: float, width: float, **style: object) -> Rectangle:
    return Rectangle((column, row), width, height, **style)


def pictures() -> Image.Image:
    """A scene of `Glyphs` as `pliant predict` draws boxes and masks; the scores are made up."""
    options = {"split": "test", "size": 256, "digits": (5, 7), "warp": 0.5}
    scenes = [Glyphs(4, task=task, **options) for task in ("detection", "segmentation")]
    image, target = scenes[0][2]
    _, mask = scenes[1][2]
    pixels = (image.as_subclass(Tensor) * 255).byte() if image.is_floating_point() else image.as_subclass(Tensor)
    scores = torch.linspace(0.97, 0.61, len(target["labels"]))
    drawn = [
        draw_boxes(pixels, target["boxes"], target["labels"], scenes[0].classes, scores),
        draw_mask(pixels, mask.as_subclass(Tensor), scenes[1].classes),
    ]
    both = Image.new("RGB", (sum(each.width for each in drawn) + 16, max(each.height for each in drawn)), "white")
    for place, each in enumerate(drawn):
        both.paste(each, (place * (drawn[0].width + 16), 0))
    return both


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "pliant"  # the same file from the same drawing
    for draw in (grids, borders, bins):
        draw().savefig(IMAGES / f"{draw.__name__}.svg", metadata={"Date": None})
    pictures().save(IMAGES / "pictures.png", optimize=True)
