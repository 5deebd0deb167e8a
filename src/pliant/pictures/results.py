"""Results drawn on images: boxes with labels, masks with a legend, classes with their probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from pliant.pictures.colours import Colour, class_colours, has_background, mask_colours, text_colour
from pliant.pictures.fonts import font, font_file, line_height, names_to_draw, shortened, width
from pliant.pictures.labels import Labels

_SMALLEST = 360  # pixels of the longer side; smaller images are enlarged, since no label is readable on them
_TEXT, _SMALLEST_TEXT = 0.026, 12  # of the geometric mean of the sides; pixels
_HIDDEN = 0.12  # of a label on others, from which it is made shorter
_COVERED = 0.35  # of the picture under labels, above which all are made shorter
_PAPER, _INK, _BAR = (255, 255, 255), (32, 32, 32), (0, 114, 178)


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a colour, the name of a class, and a number."""

    colour: Colour
    name: str
    note: str


def draw_boxes(
    image: Tensor, boxes: Tensor, labels: Tensor, classes: Sequence[str], scores: Tensor | None = None
) -> Image.Image:
    """Draw boxes with the names of their classes.

    Lines and text have a size in proportion to the image, which is enlarged by a whole factor if it is small. Labels
    stay in the picture. A label without room for itself is reduced to its score, or left out if that has none either;
    a legend below the picture then says what the colours mean.

    Args:
        image: uint8 `[3, H, W]`.
        boxes: (x0, y0, x1, y1) in pixels `[K, 4]`.
        labels: 1 to C `[K]`.
        classes: the C names.
        scores: scores `[K]`; None for boxes that have none, such as the ground truth.
    """
    canvas, factor = _enlarged(image)
    names, colours = names_to_draw(classes), class_colours(len(classes))
    ids = [int(label) - 1 for label in labels]
    order = sorted(range(len(ids)), key=lambda k: -_area(boxes[k]) if scores is None else -float(scores[k]))
    places = np.asarray(boxes, dtype=float).reshape(-1, 4) * factor
    size = _text_size(canvas.size)
    line = max(1, round(size / 7))
    pen = ImageDraw.Draw(canvas)
    for k in reversed(order):
        _frame(pen, places[k], colours[ids[k]], line)
    spots, all_whole = _labelled(places, [names[label] for label in ids], scores, order, canvas.size, size)
    for k, (corner, text) in reversed(spots.items()):
        _tag(pen, corner, text, colours[ids[k]], size)
    if all_whole:
        return canvas
    counts = Counter(ids)
    return with_legend(canvas, [Entry(colours[label], names[label], f"{n}") for label, n in counts.most_common()])


def draw_mask(image: Tensor, ids: Tensor, classes: Sequence[str], opacity: float = 0.5) -> Image.Image:
    """Draw the classes of pixels over an image, with a legend of those that are in it and their shares.

    Under a colour the image is grey, so that the colour stays that of the legend. A first class that is called
    background has no colour. The image is enlarged by a whole factor if it is small.

    Args:
        image: uint8 `[3, H, W]`.
        ids: classes of the pixels, integers `[H, W]`; those that are no class, such as 255, have no colour.
        classes: names of the classes.
        opacity: of the colours, in 0..1; borders between classes are opaque.
    """
    number = len(classes)
    colours = np.array([*mask_colours(classes), (0, 0, 0)], dtype=np.uint8)
    known = np.asarray(ids.clamp(0, number)).astype(np.uint16)  # those beyond the classes are `number`
    strength = np.full(number + 1, round(255 * opacity), dtype=np.uint8)
    strength[[number, *([0] if has_background(classes) else [])]] = 0
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    shown = Image.fromarray(strength[known])
    picture.paste(picture.convert("L").convert("RGB"), mask=shown.point(lambda value: 255 * (value > 0)))
    picture.paste(Image.fromarray(colours[known]), mask=shown)
    canvas, factor = _enlarge(picture)
    large = known.repeat(factor, 0).repeat(factor, 1)
    opaque = _borders(large, max(1, round(math.sqrt(large.size) / 500))) & (strength[large] > 0)
    canvas.paste(Image.fromarray(colours[large]), mask=Image.fromarray(opaque))
    counts = np.bincount(known.ravel(), minlength=number + 1)[:number]
    names, total, swatches = names_to_draw(classes), max(counts.sum(), 1), mask_colours(classes)
    if has_background(classes):
        swatches[0] = _PAPER
    entries = [
        Entry(swatches[label], names[label], _percent(counts[label] / total))
        for label in np.argsort(-counts, kind="stable").tolist()
        if counts[label]
    ]
    return with_legend(canvas, entries)


def draw_classes(image: Tensor, best: Sequence[tuple[str, float]], note: str = "") -> Image.Image:
    """Draw an image with the classes that fit it best, each with its probability as a bar, below it.

    Args:
        image: uint8 `[3, H, W]`.
        best: names with probabilities, the best one first.
        note: a line above the classes.
    """
    canvas, _ = _enlarged(image)
    size, wide = _text_size(canvas.size), max(canvas.width, 20 * _text_size(canvas.size))
    high, gap = line_height(size), size // 2
    lines = [(name, f"{100 * score:.1f} %", score) for name, score in best]
    extended = Image.new("RGB", (wide, canvas.height + (len(lines) + bool(note)) * (high + gap) + gap), _PAPER)
    extended.paste(canvas, ((wide - canvas.width) // 2, 0))
    pen = ImageDraw.Draw(extended)
    y = canvas.height + gap
    if note:
        _write(pen, (gap, y), shortened(note, size, wide - 2 * gap), size, _INK)
        y += high + gap
    for name, number, score in lines:
        figure = width(number, size)
        pen.rectangle((0, y - gap // 2, round(score * wide), y + high + gap // 2 - 1), fill=_blend(_BAR, _PAPER, 0.35))
        _write(pen, (gap, y), shortened(name, size, wide - figure - 4 * gap), size, _INK)
        _write(pen, (wide - gap - figure, y), number, size, _INK)
        y += high + gap
    return extended


def with_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """A picture with a legend below it, in as many lines as are needed."""
    size = _text_size(picture.size)
    high, gap = line_height(size), size // 2
    wide = max(picture.width, 20 * size)
    lines: list[list[tuple[int, Entry, str]]] = [[]]
    x = gap
    for entry in entries:
        fixed = high + gap + width(f" {entry.note}", size)
        text = f"{shortened(entry.name, size, wide - fixed - 2 * gap)} {entry.note}".strip()
        needed = high + gap + width(text, size)
        if lines[-1] and x + needed + gap > wide:
            lines.append([])
            x = gap
        lines[-1].append((x, entry, text))
        x += needed + 3 * gap
    extended = Image.new("RGB", (wide, picture.height + len(lines) * (high + gap) + gap), _PAPER)
    extended.paste(picture, (0, 0))
    pen = ImageDraw.Draw(extended)
    for row, line in enumerate(lines):
        y = picture.height + gap + row * (high + gap)
        for x, entry, text in line:
            pen.rectangle((x, y, x + high - 1, y + high - 1), fill=entry.colour, outline=_INK, width=max(1, size // 12))
            _write(pen, (x + high + gap, y), text, size, _INK)
    return extended


def _labelled(
    places: np.ndarray,
    names: Sequence[str],
    scores: Tensor | None,
    order: Sequence[int],
    picture: tuple[int, int],
    size: int,
) -> tuple[dict[int, tuple[tuple[int, int], str]], bool]:
    """The place and text of the label of each box that has room for one, and whether all labels have their names."""
    labels = Labels(places, picture)
    spots: dict[int, tuple[tuple[int, int], str]] = {}
    shorts = [""] * len(names) if scores is None else [f"{score:.2f}" for score in scores.tolist()]
    longs = [_name_and_score(name, short, picture[0], size) for name, short in zip(names, shorts, strict=True)]
    most = _COVERED * picture[0] * picture[1]
    crowded = sum(math.prod(_tag_size(text, size)) for text in longs) > most
    covered, whole = 0, not crowded
    for k in order:
        for text in filter(None, (shorts[k],) if crowded else dict.fromkeys((longs[k], shorts[k]))):
            wide, high = _tag_size(text, size)
            corner, hidden = labels.best(places[k].tolist(), wide, high)
            if hidden <= _HIDDEN and covered + wide * high <= most:
                labels.add(corner, wide, high)
                covered += wide * high
                spots[k] = corner, text
                break
        whole = whole and k in spots and spots[k][1] == longs[k]
    return spots, whole


def _name_and_score(name: str, score: str, picture: int, size: int) -> str:
    """The label of a box, at most as wide as the picture and as twenty letters of the largest."""
    room = picture - 2 * _padding(size) - width(f" {score}", size)
    return f"{shortened(name, size, min(room, 20 * size))} {score}".strip()


def _frame(pen: ImageDraw.ImageDraw, box: np.ndarray, colour: Colour, line: int) -> None:
    """A box with a thin dark or white edge, so that it shows on any image."""
    x0, y0, x1, y1 = (round(value) for value in box.tolist())
    x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
    edge = max(1, line // 3)
    outer = (x0 - edge, y0 - edge, x1 + edge, y1 + edge)
    pen.rectangle(outer, outline=text_colour(colour), width=line + 2 * edge)
    pen.rectangle((x0, y0, x1, y1), outline=colour, width=line)


def _tag(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: Colour, size: int) -> None:
    x, y = corner
    wide, high = _tag_size(text, size)
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
    _write(pen, (x + _padding(size), y + _padding(size) // 2), text, size, text_colour(colour))


def _tag_size(text: str, size: int) -> tuple[int, int]:
    return width(text, size) + 2 * _padding(size), line_height(size) + _padding(size)


def _padding(size: int) -> int:
    return max(2, size // 4)


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, colour: Colour) -> None:
    """Write a line whose height is that of the usual font, whichever font has its characters."""
    path = font_file(text)
    assert path is not None, f"{text!r} went past names_to_draw"
    x, y = corner
    pen.text((x, y + line_height(size) * 0.78), text, fill=colour, font=font(path, size), anchor="ls")


def _text_size(picture: tuple[int, int]) -> int:
    return max(_SMALLEST_TEXT, round(_TEXT * math.sqrt(picture[0] * picture[1])))


def _enlarged(image: Tensor) -> tuple[Image.Image, int]:
    return _enlarge(Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())))


def _enlarge(picture: Image.Image) -> tuple[Image.Image, int]:
    """A picture of a size that labels fit on, and the whole factor by which it is larger."""
    factor = math.ceil(_SMALLEST / max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture, max(factor, 1)


def _borders(ids: np.ndarray, thickness: int) -> np.ndarray:
    """The pixels that are at most `thickness` rows or columns from one of another class, bool `[H, W]`."""
    found = np.zeros(ids.shape, dtype=bool)
    for one, other in ((np.s_[thickness:], np.s_[:-thickness]), (np.s_[:, thickness:], np.s_[:, :-thickness])):
        differ = ids[one] != ids[other]
        found[one] |= differ
        found[other] |= differ
    return found


def _blend(colour: Colour, paper: Colour, share: float) -> Colour:
    mixed = [round(share * ours + (1 - share) * theirs) for ours, theirs in zip(colour, paper, strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"


def _area(box: Tensor) -> float:
    x0, y0, x1, y1 = box.tolist()
    return (x1 - x0) * (y1 - y0)
