"""A hook of mkdocs: formulas become MathML, which browsers draw by themselves, offline."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(text: str, **_: Any) -> str:
    """Replace what the arithmatex extension marked."""
    return _FORMULA.sub(_drawn, text)


def _drawn(found: re.Match[str]) -> str:
    formula = html.unescape(found[3]).strip()
    return convert(formula, display="block" if found[2] == "[" else "inline")
