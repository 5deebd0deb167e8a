"""Values that several packages share."""

from __future__ import annotations

IGNORE = 255
"""The class id of the pixels of a mask that are neither trained on nor evaluated."""

COLOURS = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#999999",
    "violet": "#7F3C8D",
    "white": "#FFFFFF",
}
"""The palette of all pictures. Okabe and Ito chose the first eight for colour-blind readers."""
