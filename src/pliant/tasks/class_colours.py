"""A colour for each class of a data set, however many there are."""

from __future__ import annotations

import colorsys

_GOLDEN = 0.61803398875


def class_colours(number: int) -> list[tuple[int, int, int]]:
    """Black for the first class, then hues of which consecutive ones differ strongly."""
    hues = [(0.02 + place * _GOLDEN) % 1.0 for place in range(number - 1)]
    colours = [colorsys.hsv_to_rgb(hue, 0.85, 1.0 if place % 2 else 0.8) for place, hue in enumerate(hues)]
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)]
