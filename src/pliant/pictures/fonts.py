"""Text on pictures: which font has the characters of a name, and how much room it takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

from pliant.console import printable

_USUAL = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def names_to_draw(classes: Sequence[str]) -> list[str]:
    """The names as pictures can show them: ``class 3`` for the third if no font of this machine has its characters."""
    return [
        name if font_file(name) is not None else f"class {number}"
        for number, name in enumerate(map(printable, classes), start=1)
    ]


def undrawable(classes: Sequence[str]) -> list[str]:
    """The names that no font of this machine has the characters of."""
    return [name for name in classes if font_file(printable(name)) is None]


@lru_cache(maxsize=4096)
def font_file(text: str) -> Path | None:
    """A font that has all characters of a text: DejaVu Sans, which comes with matplotlib, or one of the system."""
    characters = {ord(character) for character in text if not character.isspace()}
    if characters <= _characters(_USUAL):
        return _USUAL
    return next((path for path in _system_fonts() if characters <= _characters(path)), None)


@lru_cache(maxsize=64)
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font in a size, in pixels."""
    return ImageFont.truetype(path, size)


def width(text: str, size: int) -> int:
    """The width of a text in pixels."""
    return -int(-font(font_file(text) or _USUAL, size).getlength(text) // 1)


def line_height(size: int) -> int:
    """The height of a line of text in pixels."""
    return sum(font(_USUAL, size).getmetrics())


def shortened(text: str, size: int, most: int) -> str:
    """A text that is at most so many pixels wide, with an ellipsis where a part of it is left out.

    That part lies behind the middle, since names that are alike often differ at their ends.
    """
    if width(text, size) <= most:
        return text

    def of_length(letters: int) -> str:
        end = letters // 3
        return f"{text[: letters - end].rstrip()}…{text[len(text) - end :].lstrip()}"

    short, long = 0, len(text)  # binary search of the number of characters that fit
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (middle, long) if width(of_length(middle), size) <= most else (short, middle)
    return of_length(short) if short else ""


@lru_cache
def _system_fonts() -> tuple[Path, ...]:
    """The fonts of the system; upright sans-serif ones of regular weight first."""
    from matplotlib.font_manager import findSystemFonts

    def preference(path: Path) -> tuple[bool, bool, str]:
        name = path.stem.lower()
        return (any(style in name for style in ("bold", "italic", "oblique", "light")), "sans" not in name, name)

    return tuple(sorted(map(Path, findSystemFonts()), key=preference))


@lru_cache(maxsize=512)
def _characters(path: Path) -> frozenset[int]:
    """The characters of a font, as code points; none if Pillow cannot scale it."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(str(path))
        return frozenset(face.get_charmap()) if face.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
