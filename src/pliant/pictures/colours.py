"""A colour for each class of a data set, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from pliant.constants import COLOURS

Colour = tuple[int, int, int]

_FIRST = ("orange", "sky blue", "green", "vermilion", "blue", "yellow", "purple", "violet")
_LEVELS = range(0, 256, 17)  # of each channel of the colours to choose from
_LIGHTNESS, _CHROMA = (0.45, 0.9), 0.09  # in OKLab: neither near black nor white, and not grey
# Linear RGB to the responses of the cones, and their cube roots to OKLab (Björn Ottosson, 2020).
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def class_colours(number: int) -> list[Colour]:
    """Colours that differ as much as possible, the first ones also for colour-blind readers.

    The first eight are those of all pictures of Pliant. Each further colour is the one farthest from all before it, by
    its distance in OKLab, among those that are visible on dark and on bright images.

    Args:
        number: number of classes. A colour occurs twice only if there are more classes than colours to choose from.
    """
    colours = _distinct(min(number, len(_palette()[0])))
    return [colours[place % len(colours)] for place in range(number)]


def mask_colours(classes: Sequence[str]) -> list[Colour]:
    """The colour of each class of a segmentation; black for a first class that is called background."""
    if has_background(classes):
        return [(0, 0, 0), *class_colours(len(classes) - 1)]
    return class_colours(len(classes))


def has_background(classes: Sequence[str]) -> bool:
    """Whether the first class is the background, which pictures leave uncoloured: it is if that is its name."""
    return bool(classes) and classes[0].strip(" _").lower() == "background"


def text_colour(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more with a colour (by WCAG's relative luminance)."""
    luminance = float(_linear(np.array(colour)) @ [0.2126, 0.7152, 0.0722])
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def rgb(name: str) -> Colour:
    """The red, green and blue of a colour ``#RRGGBB``."""
    return (int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16))


@lru_cache
def _distinct(number: int) -> tuple[Colour, ...]:
    colours, lab = _palette()
    chosen = [rgb(COLOURS[name]) for name in _FIRST][:number]
    distance = np.full(len(colours), np.inf)
    for colour in chosen:
        distance = np.minimum(distance, np.linalg.norm(lab - oklab(np.array(colour)), axis=1))
    while len(chosen) < number:
        farthest = int(distance.argmax())
        chosen.append(tuple(colours[farthest].tolist()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return tuple(chosen)


@lru_cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """The colours to choose from, `[N, 3]`, and the same in OKLab."""
    colours = np.array(list(product(_LEVELS, repeat=3)))
    lab = oklab(colours)
    visible = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1]) & (np.hypot(*lab[:, 1:].T) > _CHROMA)
    return colours[visible], lab[visible]


def oklab(colours: np.ndarray) -> np.ndarray:
    """OKLab's lightness, green to red and blue to yellow of colours in 0..255, `[..., 3]`."""
    return np.cbrt(_linear(colours) @ _TO_CONES.T) @ _TO_LAB.T


def _linear(colours: np.ndarray) -> np.ndarray:
    """sRGB in 0..255 as linear light in 0..1."""
    part = np.asarray(colours) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
