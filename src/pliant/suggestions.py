"""Suggestions for mistyped names: recipes, fields, choices, backbones, files."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path

_MOST = 3
_ALIKE = 0.6  # difflib's own default


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: `"; did you mean 'max_steps'?"`, or `""` if none is alike.

    Case does not count, and a beginning stands for a name if nothing else is alike. In names of several parts, such as
    `voc.faster_rcnn`, the last part may be given alone.

    Args:
        given: what was given.
        known: the names that exist.
    """
    names = list(dict.fromkeys(known))
    found = _alike(given, names)
    if not found:
        last = [name.rpartition(".")[2] for name in names]
        alike = _alike(given, last)[:1]
        found = [name for name, part in zip(names, last, strict=True) if part in alike][:_MOST]
    return _said(found)


def did_you_mean_path(path: Path) -> str:
    """The same for a path that does not exist, with the names in its folder."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [entry.name for entry in path.parent.iterdir()]
    return _said([str(path.parent / name) for name in _alike(path.name, names)])


def _alike(given: str, names: Iterable[str]) -> list[str]:
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(given.casefold(), folded, _MOST, _ALIKE)
    begun = [name for name in folded if len(given) > 1 and name.startswith(given.casefold())]
    return [folded[name] for name in (close or begun)[:_MOST]]


def _said(found: list[str]) -> str:
    if not found:
        return ""
    *others, last = map(repr, found)
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"
