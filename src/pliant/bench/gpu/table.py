"""Makes the shipped table of launch settings from the ledger's tuning lines.

The table is a JSON file beside `tiles.py`, which `shipped.py` reads. For each GPU, kernel, dtype and class of shape it
has the fastest settings whose results were right, and their time relative to the settings that were in force.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pliant.bench.gpu.ledger import Line
from pliant.ops.deform_conv2d import shipped

_NOISE = 0.99  # of the time of the settings in force: what is not below stays as it is


def write(lines: Sequence[Line], path: Path = shipped.PATH) -> None:
    """Write the table.

    Raises:
        ValueError: If the ledger has no tuning line of a GPU.
    """
    found = table(lines)
    if not found:
        raise ValueError("the ledger has no tuning lines of a GPU, so there is nothing to make a table of")
    rows = ",\n ".join(json.dumps(entry, sort_keys=True) for entry in found)
    path.write_text(f"[\n {rows}\n]\n", encoding="utf-8")


def table(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the entries of the kernels that were tuned last, in a fixed order. Repeated measurements count once."""
    tuned = [
        line
        for line in lines
        if line.get("kind") == "tuning" and "device" in line and line.get("capability") and line.get("right")
    ]
    last: dict[str, Line] = {}
    for line in tuned:
        if line["kernels"] == tuned[-1]["kernels"]:
            last[json.dumps([_class(line), _settings(line)], sort_keys=True)] = line
    best: dict[str, dict[str, Any]] = {}
    for line in last.values():
        taking = 1.0 if line["chosen"] else line.get("to_chosen") or float("inf")
        name = json.dumps(_class(line), sort_keys=True)
        # The settings in force count as a little faster than they were, so that noise replaces none.
        rank = _NOISE if line["chosen"] else taking
        if name not in best or rank < best[name]["rank"]:
            best[name] = {"rank": rank, "entry": _class(line) | _settings(line) | {"of_the_time": round(taking, 3)}}
    return [best[name]["entry"] for name in sorted(best)]


def _class(line: Line) -> dict[str, Any]:
    kernel = line.get("kernel") or f"{line['pass']}_by_columns"
    return {
        "capability": line["capability"],
        "kernel": kernel,
        "dtype": line["key"]["dtype"],
        "shape": line["shape"],
    }


def _settings(line: Line) -> dict[str, Any]:
    return {"tiles": line["tiles"]} if line.get("kernel") else {"design": line["design"]}
