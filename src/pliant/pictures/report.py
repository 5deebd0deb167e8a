"""A page of results in one HTML file that works offline: tables, charts and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

_LONGEST_SIDE = 720  # of an embedded picture, in pixels


@dataclass(frozen=True)
class Table:
    """A table; the first column contains names, the others numbers.

    Attributes:
        title: heading above the table.
        note: what the columns are.
        columns: headings of the columns.
        rows: cells as text.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: heading above the chart.
        note: how to read it.
        svg: an SVG element that `pliant.pictures.charts` drew.
    """

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Example:
    """An image of a gallery.

    Attributes:
        name: name of the image.
        note: its result.
        pictures: pictures by their captions.
    """

    name: str
    note: str
    pictures: Mapping[str, Image.Image]


@dataclass(frozen=True)
class Gallery:
    """Images with their results.

    Attributes:
        title: heading above the images.
        note: how they were chosen.
        examples: the images.
    """

    title: str
    note: str
    examples: Sequence[Example]


Section = Table | Chart | Gallery


def write_report(path: Path, title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write an HTML file that contains everything it shows and needs no server, other file or network connection.

    Args:
        path: the file to write.
        title: title of the page.
        facts: what was evaluated and how, by name.
        sections: the parts of the page.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"kind": lambda section: type(section).__name__, "markup": Markup, "embedded": _embedded}
    template = files("pliant.pictures").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(title=title, facts=facts, sections=sections)
    path.write_text(page, encoding="utf-8")


def _embedded(picture: Image.Image) -> str:
    """A picture as a data URI."""
    small = picture.convert("RGB")
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    stream = io.BytesIO()
    small.save(stream, "WebP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
