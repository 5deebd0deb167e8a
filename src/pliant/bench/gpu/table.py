"""The shipped table of launch settings, made of the ledger's tuning lines.

It is JSON beside `tiles.py`: a list with, for each architecture, kernel, dtype and class of shape, the fastest
candidate whose results were right, and what it was measured to take of the time of the settings without the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pliant
from pliant.bench.gpu.ledger import Line

PATH = Path(pliant.__file__).parent / "ops" / "deform_conv2d" / "tiles.json"
_GAIN = 0.99  # of the chosen settings' time: what is not faster than that is noise


def write(lines: Sequence[Line], path: Path = PATH) -> None:
    """Write the table.

    Raises:
        ValueError: if the ledger has no tuning line of a GPU.
    """
    found = table(lines)
    if not found:
        raise ValueError("the ledger has no tuning lines of a GPU, so there is nothing to make a table of")
    rows = ",\n ".join(json.dumps(entry, sort_keys=True) for entry in found)
    path.write_text(f"[\n {rows}\n]\n", encoding="utf-8")


def table(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The entries, in a fixed order; a later measurement replaces an earlier one."""
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    seen: dict[str, Line] = {}
    for line in lines:
        if line.get("kind") == "tuning" and "device" in line and line.get("capability") and "shape" in line:
            seen[json.dumps([_class(line), line.get("tiles"), line.get("design")], sort_keys=True)] = line
    for line in seen.values():
        ratio = line.get("to_chosen")
        if ratio is None or not line.get("right") or ratio > _GAIN:
            continue
        name = json.dumps(_class(line), sort_keys=True)
        settings = {"tiles": line["tiles"]} if line.get("tiles") else {"design": line["design"]}
        if name not in best or ratio < best[name][0]:
            best[name] = ratio, _class(line) | settings | {"of_the_time": ratio}
    return [best[name][1] for name in sorted(best)]


def _class(line: Line) -> dict[str, Any]:
    kernel = line.get("kernel") or f"{line['pass']}_by_columns"
    return {
        "capability": line["capability"],
        "kernel": kernel,
        "dtype": line["key"]["dtype"],
        "shape": line["shape"],
    }
