"""Figures of what networks look at, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from torch import Tensor

from pliant import constants
from pliant.console import printable
from pliant.introspect.effective_dilation import GROUPS, Spread
from pliant.introspect.sampling_points import SamplingPoints
from pliant.pictures.colours import mask_colours

COLOURS = tuple(constants.COLOURS.values())  # by class id
_MOVED, _PLAIN, _UNIT = (constants.COLOURS[name] for name in ("vermilion", "blue", "yellow"))
_LEAST_HEIGHT = 1.0  # of a panel, in inches: that of "small object" in the size of its text
Paths = Path | Sequence[Path]


def sampling(
    path: Paths, rows: Sequence[tuple[str, Tensor, Sequence[SamplingPoints]]], columns: Sequence[str], title: str = ""
) -> None:
    """Draw the positions that units sample on images, one row per image and one column per network or state.

    Args:
        path: the picture, or several; the suffix determines the format (png, pdf, svg).
        rows: tuples (name, image uint8 `[3, H, W]`, one `SamplingPoints` per column) in pixels of that image.
        columns: titles of the columns.
        title: title of the figure.
    """
    figure, axes = _grid(len(rows), len(columns), 3.0, rows[0][1])
    for line, (name, image, points) in zip(axes, rows, strict=True):
        for place, (axis, column, found) in enumerate(zip(line, columns, points, strict=True)):
            _show(axis, image)
            y, x = found.pixels[found.inside].unbind(1)
            axis.scatter(x - 0.5, y - 0.5, s=6, color=_MOVED, edgecolors="white", linewidths=0.25)
            at = found.unit[1] - 0.5, found.unit[0] - 0.5
            for color, width in (("black", 4), (_UNIT, 2)):
                axis.scatter(*at, s=110, marker="+", color=color, linewidths=width)
            axis.set_xlim(-0.5, image.shape[2] - 0.5)
            axis.set_ylim(image.shape[1] - 0.5, -0.5)
            if line is axes[0]:
                axis.set_title(column, fontsize=10)
            if place == 0:
                axis.set_ylabel(name, fontsize=10)
    outlined = [withStroke(linewidth=4, foreground="black")]
    signs = [
        Line2D([], [], linestyle="", marker="+", color=_UNIT, mew=2, ms=9, path_effects=outlined, label="the unit"),
        Line2D([], [], linestyle="", marker="o", color=_MOVED, ms=4, label="positions that it samples"),
    ]
    figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _write(figure, path, title)


def roi_parts(path: Paths, panels: Sequence[tuple[str, Tensor, Tensor, Tensor, Tensor]], columns: int = 3) -> None:
    """Draw RoIs with the parts that deformable RoI pooling moves (Dai et al. 2017, figure 7).

    Args:
        path: the picture, or several; the suffix determines the format (png, pdf, svg).
        panels: tuples (name, image uint8 `[3, H, W]`, RoI `[4]`, plain bins `[Ph, Pw, 4]`, parts `[Ph, Pw, 4]`), with
            boxes as in `pliant.introspect.RoIParts`.
        columns: number of panels in a row.
    """
    columns = min(columns, len(panels))
    figure, axes = _grid(-(-len(panels) // columns), columns, 2.8)
    places = [axis for line in axes for axis in line]
    for axis, (name, image, roi, regular, parts) in zip(places, panels, strict=False):
        _show(axis, image)
        axis.set_title(name, fontsize=10)
        _boxes(axis, roi[None], _UNIT, 1.8, "black")
        _boxes(axis, parts.reshape(-1, 4), _MOVED, 0.9, "none")
        x, y = torch.stack((_centres(regular), _centres(parts)), dim=1).unbind(2)  # [P, 2] each, from and to
        axis.plot(x.T, y.T, color="white", linewidth=2)
        axis.plot(x.T, y.T, color="black", linewidth=0.8)
        axis.scatter(x[:, 0], y[:, 0], s=9, marker="s", color=_PLAIN, edgecolors="white", linewidths=0.5, zorder=3)
        axis.scatter(x[:, 1], y[:, 1], s=12, color=_MOVED, edgecolors="white", linewidths=0.5, zorder=3)
        x0, y0, x1, y1 = roi.tolist()
        half = 0.75 * max(x1 - x0, y1 - y0)
        axis.set_facecolor("#DDDDDD")
        axis.set_xlim((x0 + x1) / 2 - half, (x0 + x1) / 2 + half)
        axis.set_ylim((y0 + y1) / 2 + half, (y0 + y1) / 2 - half)
    for axis in places[len(panels) :]:
        axis.set_axis_off()
    signs = [
        Line2D([], [], color=_UNIT, path_effects=[withStroke(linewidth=3, foreground="black")], label="detection"),
        Line2D([], [], linestyle="", marker="s", color=_PLAIN, label="centre of a plain bin"),
        Line2D([], [], color="black", marker="o", mfc=_MOVED, mec=_MOVED, label="centre of the moved part"),
    ]
    figure.legend(handles=signs, loc="outside lower center", ncols=3 if columns > 2 else 1, frameon=False, fontsize=9)
    _write(figure, path)


def _boxes(axis: Axes, boxes: Tensor, color: str, width: float, under: str) -> None:
    for x0, y0, x1, y1 in (boxes - 0.5).tolist():
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=width)
        if under != "none":
            box.set_path_effects([withStroke(linewidth=width + 1.4, foreground=under)])
        axis.add_patch(box)


def _centres(boxes: Tensor) -> Tensor:
    flat = boxes.reshape(-1, 4)
    return (flat[:, :2] + flat[:, 2:]) / 2 - 0.5


def effective_dilation(path: Paths, spreads: Mapping[str, Mapping[str, Spread]]) -> None:
    """Draw mean and standard deviation of the effective dilation by layer and object size (Dai et al. 2017, table 2).

    Args:
        path: the picture, or several; the suffix determines the format (png, pdf, svg).
        spreads: result of `pliant.introspect.EffectiveDilation.compute`.
    """
    figure = Figure(figsize=(1.6 + 1.6 * len(spreads), 3.4), layout="constrained")
    axis = figure.subplots()
    styles = zip(GROUPS, ("v", "o", "^", "s"), (COLOURS[2], _PLAIN, _MOVED, COLOURS[8]), strict=True)
    for place, (group, marker, color) in enumerate(styles):
        at = [line + 0.16 * (place - 1.5) for line in range(len(spreads))]
        means, stds, _ = zip(*(groups[group] for groups in spreads.values()), strict=True)
        axis.errorbar(at, means, stds, fmt=marker, color=color, capsize=3, markersize=7, label=group)
    axis.set_xticks(range(len(spreads)), list(spreads), fontsize=8)
    axis.set_ylabel("effective dilation (cells)")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(GROUPS), frameon=False)
    _write(figure, path)


def segmentations(
    path: Paths, images: Sequence[Tensor], masks: Sequence[tuple[str, Sequence[Tensor]]], classes: Sequence[str]
) -> None:
    """Draw images beside masks of class ids, one row per image, with a legend of the classes.

    Args:
        path: the picture, or several; the suffix determines the format (png, pdf, svg).
        images: uint8 `[3, H, W]` each.
        masks: for each column its title and one integer mask `[H, W]` per image.
        classes: names of the classes by id. A first class that is called background is black.
    """
    figure, axes = _grid(len(images), 1 + len(masks), 1.7)
    of_classes = [tuple(channel / 255 for channel in colour) for colour in mask_colours(classes)]
    colours = ListedColormap(of_classes)
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
        for name, colour in zip(classes, of_classes, strict=True)
    ]
    wide, high = figure.get_size_inches()
    columns = max(1, min(len(classes), int(wide / (0.45 + 0.08 * max(map(len, classes))))))  # inches of a name
    figure.set_size_inches(wide, high + 0.18 * (math.ceil(len(classes) / columns) - 1))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    _write(figure, path)


def bars(path: Paths, values: Sequence[tuple[str, float]], label: str) -> None:
    """Draw one horizontal bar per value, with its number beside it."""
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


def _grid(rows: int, columns: int, side: float, image: Tensor | None = None) -> tuple[Figure, list[list[Axes]]]:
    """Panels of this width in inches, with the aspect ratio of the image where it leaves room for a name beside it."""
    height = side if image is None else side * image.shape[1] / image.shape[2]
    height = min(max(height, _LEAST_HEIGHT), 3 * side)
    figure = Figure(figsize=(columns * side, rows * height + 0.75), layout="constrained")
    return figure, [list(line) for line in figure.subplots(rows, columns, squeeze=False)]


def _show(axis: Axes, image: Tensor) -> None:
    axis.imshow(np.asarray(image.permute(1, 2, 0)), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _write(figure: Figure, path: Paths, title: str = "") -> None:
    if title:
        figure.suptitle(title, fontsize=11)
    for text in figure.findobj(Text):  # dollar signs in names are not mathematics
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
    FigureCanvasAgg(figure)
    for each in [path] if isinstance(path, Path) else path:
        figure.savefig(each, dpi=160)
