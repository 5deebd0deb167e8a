"""Charts of results as SVG, for pages: precision over recall, confusion of classes, curves of a training."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from pliant.console import printable
from pliant.constants import COLOURS
from pliant.pictures.colours import class_colours

_FEW = 12  # classes that get a colour and a line of the legend each, or numbers in the cells of a matrix
_NAMED = 60  # classes whose names fit beside a matrix
_GREY, _MAIN = "#9aa0a6", COLOURS["blue"]
_BINS = 600  # points of a curve, more than a page has pixels


def precision_recall(
    recall: np.ndarray, by_class: Mapping[str, np.ndarray], by_overlap: Mapping[str, np.ndarray]
) -> str:
    """Precision over recall, of each class beside the means at several overlaps.

    Args:
        recall: `[R]`.
        by_class: precision `[R]` of each class that has objects.
        by_overlap: mean precision `[R]` of the classes, by the name of the overlap.

    Returns:
        An SVG element.
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    few = len(by_class) <= _FEW
    colours = _hex(class_colours(len(by_class))) if few else [_GREY] * len(by_class)
    for (name, precision), colour in zip(by_class.items(), colours, strict=True):
        label = f"{_short(name)}  {precision.mean():.2f}" if few else None
        left.plot(recall, precision, color=colour, linewidth=1.8 if few else 0.6, label=label)
    if not few:
        mean = np.mean(list(by_class.values()), axis=0)
        left.plot(recall, mean, color=_MAIN, linewidth=2.5, label=f"mean of {len(by_class)} classes  {mean.mean():.2f}")
    left.set_title("each class, overlap 0.5", fontsize=10)
    for (name, precision), colour in zip(by_overlap.items(), _hex(class_colours(len(by_overlap))), strict=True):
        right.plot(recall, precision, color=colour, linewidth=1.8, label=f"{name}  {precision.mean():.2f}")
    right.set_title("mean of the classes, by overlap", fontsize=10)
    for axis in (left, right):
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall")
        axis.legend(fontsize=8, frameon=False, loc="best")
        _tidy(axis)
    left.set_ylabel("precision")
    return svg(figure)


def confusion(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A matrix of counts, coloured by the share of each row.

    Args:
        matrix: counts `[N, M]`; rows are the truth, columns the prediction.
        rows, columns: their names.

    Returns:
        An SVG element.
    """
    longest = max(len(_short(name)) for name in (*rows, *columns))
    side = min(max(0.42 * max(matrix.shape), 2.2), 9.0)
    figure = Figure(figsize=(side * 1.15 + 0.09 * longest + 1, side + 0.07 * longest + 0.6), layout="constrained")
    axis = figure.subplots()
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    shown = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    named = max(matrix.shape) <= _NAMED
    size = 9 if max(matrix.shape) <= _FEW else 7
    axis.set_xticks(range(len(columns)) if named else [], [_short(n) for n in columns] if named else [], fontsize=size)
    axis.set_yticks(range(len(rows)) if named else [], [_short(n) for n in rows] if named else [], fontsize=size)
    axis.tick_params(axis="x", rotation=45 if longest > 4 or len(columns) > _FEW else 0)
    if max(matrix.shape) <= _FEW:
        for row, column in np.ndindex(*matrix.shape):
            colour = "white" if share[row, column] > 0.6 else "black"
            text = f"{matrix[row, column]:,.0f}\n{100 * share[row, column]:.0f} %" if total[row, 0] else "0"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=6.5)
    axis.set(xlabel="predicted", ylabel="truth")
    figure.colorbar(shown, label="share of the row", shrink=0.8)
    return svg(figure)


def training(panels: Sequence[tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]], best: float | None) -> str:
    """Curves over the steps of a training, a panel for each unit.

    Args:
        panels: the name of each vertical axis, with its curves: steps `[N]` and values `[N]` by name.
        best: the step of the best weights, which is marked; None for no mark.

    Returns:
        An SVG element.
    """
    figure = Figure(figsize=(10, 0.4 + 2.5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (unit, curves) in zip(axes, panels, strict=True):
        for (name, (steps, values)), colour in zip(curves.items(), _hex(class_colours(len(curves))), strict=True):
            _curve(axis, steps, values, colour, name)
        if best is not None:
            axis.axvline(best, color=_GREY, linewidth=1, linestyle=":")
        axis.set_ylabel(unit)
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _tidy(axis)
    axes[-1].set_xlabel("step")
    return svg(figure)


def _curve(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str, name: str) -> None:
    """A curve; of one with many points the mean in each of some hundred intervals, with the range behind it."""
    if len(steps) <= 60:
        axis.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3, label=name)
        return
    parts = np.array_split(np.arange(len(steps)), min(max(len(steps) // 20, 30), _BINS))
    middle = [steps[part].mean() for part in parts]
    low, high = ([extreme(values[part]) for part in parts] for extreme in (np.min, np.max))
    axis.fill_between(middle, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(middle, [values[part].mean() for part in parts], color=colour, linewidth=1.6, label=name)


def svg(figure: Figure) -> str:
    """A figure as an SVG element whose text is text, in the font of the page, which may have more characters."""
    for text in figure.findobj(Text):  # dollar signs in names are not mathematics
        text.set_parse_math(False)
        text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    FigureCanvasAgg(figure)
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pliant"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawn = stream.getvalue()
    return drawn[drawn.index("<svg") :]


def _tidy(axis: Axes) -> None:
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _hex(colours: Iterable[tuple[int, int, int]]) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours]


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
