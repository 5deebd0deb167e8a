"""Draws docs/images/layers.svg from the import contracts of pyproject.toml: python docs/layers.py."""

from __future__ import annotations

import tomllib
from pathlib import Path

import jinja2

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "layers.svg"
WIDTH, HEIGHT, GAP, LEFT = 880, 30, 8, 44

SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ rows | length * step + 16 }}" role="img"
  font-family="sans-serif" font-size="12" text-anchor="middle">
<title>The layers of pliant: a module imports from the rows below its own</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<path d="M22 12 V{{ rows | length * step }} m-5 -8 l5 8 l5 -8" fill="none" stroke="#0072B2" stroke-width="2"/>
{% for row in rows %}
{% for box in row %}
<rect x="{{ box.x }}" y="{{ box.y }}" width="{{ box.width }}" height="{{ height }}" rx="4" fill="#e8f1f8" \
stroke="#0072B2"/>
<text x="{{ box.x + box.width / 2 }}" y="{{ box.y + 19 }}" fill="#1a1a1a">{{ box.name }}</text>
{% endfor %}
{% endfor %}
</svg>
"""


def layers() -> list[list[str]]:
    """The modules of each layer, from the top, without ``pliant.``."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (rows,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("pliant.") for name in row.split("|")] for row in rows]


def draw(rows: list[list[str]]) -> str:
    """The picture: a row for each layer, with boxes as wide as their names."""
    boxes = []
    for number, names in enumerate(rows):
        free = WIDTH - LEFT - GAP * len(names)
        letters = sum(len(name) + 4 for name in names)
        x, row = LEFT, []
        for name in names:
            width = free * (len(name) + 4) // letters
            row.append({"name": name, "x": x, "y": 8 + number * (HEIGHT + GAP), "width": width})
            x += width + GAP
        boxes.append(row)
    environment = jinja2.Environment(trim_blocks=True, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(SVG).render(rows=boxes, width=WIDTH, height=HEIGHT, step=HEIGHT + GAP) + "\n"


if __name__ == "__main__":
    IMAGE.write_text(draw(layers()), encoding="utf-8")
