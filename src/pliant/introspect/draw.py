"""Pictures of what networks see, for papers and screens, in colours that everyone can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from pliant.introspect.sampling import SamplingPoints

# Okabe and Ito's eight colours, and two more for ten classes; black is the background.
COLOURS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#999999",
    "#7F3C8D",
    "#FFFFFF",
)
_POINT = "#D7263D"
_UNIT = "#00C853"


def sampling(
    path: Path, rows: Sequence[tuple[str, Tensor, Sequence[SamplingPoints]]], columns: Sequence[str], title: str = ""
) -> None:
    """Draw images with the places that one unit of each reads, a row an image, a column a network or state.

    Args:
        path: of the picture; its ending gives the format (png, pdf, svg).
        rows: (name, image uint8 `[3, H, W]`, one `SamplingPoints` a column).
        columns: their titles.
        title: above all.
    """
    figure, axes = _grid(len(rows), len(columns), 2.6)
    for line, (name, image, points) in zip(axes, rows, strict=True):
        for place, (axis, column, found) in enumerate(zip(line, columns, points, strict=True)):
            _show(axis, image)
            y, x = found.pixels.unbind(1)
            axis.scatter(x - 0.5, y - 0.5, s=7, color=_POINT, alpha=0.75, linewidths=0)
            axis.scatter(
                found.unit[1] - 0.5,
                found.unit[0] - 0.5,
                s=46,
                marker="s",
                color=_UNIT,
                edgecolors="white",
                linewidths=1,
            )
            axis.set_xlim(-0.5, image.shape[2] - 0.5)
            axis.set_ylim(image.shape[1] - 0.5, -0.5)
            if line is axes[0]:
                axis.set_title(column, fontsize=10)
            if place == 0:
                axis.set_ylabel(name, fontsize=10)
    _write(figure, path, title)


def segmentations(
    path: Path, images: Sequence[Tensor], masks: Sequence[tuple[str, Sequence[Tensor]]], classes: Sequence[str]
) -> None:
    """Draw images beside masks of class ids, a row an image, with a legend of the classes.

    Args:
        path: of the picture.
        images: uint8 `[3, H, W]`.
        masks: for each column its title and one integer mask `[H, W]` an image.
        classes: the names by id; at most eleven.
    """
    if len(classes) > len(COLOURS):
        raise ValueError(f"at most {len(COLOURS)} classes can be told apart, got {len(classes)}")
    figure, axes = _grid(len(images), 1 + len(masks), 1.7)
    colours = ListedColormap(COLOURS[: len(classes)])
    for row, image in enumerate(images):
        _show(axes[row][0], image)
        for axis, (title, column) in zip(axes[row][1:], masks, strict=True):
            axis.imshow(
                np.asarray(column[row]), cmap=colours, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest"
            )
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=10)
    axes[0][0].set_title("image", fontsize=10)
    handles = [
        figure.axes[0].scatter([], [], marker="s", s=50, color=colour, edgecolors="#888888", linewidths=0.5, label=name)
        for name, colour in zip(classes, COLOURS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(classes), fontsize=8, frameon=False)
    _write(figure, path)


def bars(path: Path, values: Sequence[tuple[str, float]], label: str) -> None:
    """Draw one horizontal bar a value, with the numbers beside them."""
    figure = Figure(figsize=(6, 0.6 + 0.45 * len(values)), layout="constrained")
    axis = figure.subplots()
    names = [name for name, _ in values]
    shown = axis.barh(names, [value for _, value in values], color=[COLOURS[8]] * (len(values) - 1) + [COLOURS[5]])
    axis.bar_label(shown, fmt="%.1f", padding=4)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    _write(figure, path)


def _grid(rows: int, columns: int, side: float) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(columns * side, rows * side + 0.5), layout="constrained")
    return figure, [list(line) for line in figure.subplots(rows, columns, squeeze=False)]


def _show(axis: Axes, image: Tensor) -> None:
    axis.imshow(np.asarray(image.permute(1, 2, 0)), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _write(figure: Figure, path: Path, title: str = "") -> None:
    if title:
        figure.suptitle(title, fontsize=11)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=160)
