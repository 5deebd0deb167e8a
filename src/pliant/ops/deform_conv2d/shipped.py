"""The table of launch settings that ships: what was measured to be fastest, by GPU, dtype and class of shape.

`tiles.json` beside this file is made by `python -m pliant.bench.gpu --table` from measurements. An entry serves the
shapes of its class: the same groups and taps, channels of the same powers of two, and up to four times as many output
cells or as few. For all others `tiles.py` chooses by arithmetic.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pliant.ops import _gpu

if TYPE_CHECKING:
    from pliant.ops.deform_conv2d.tiles import Problem

PATH = Path(__file__).with_name("tiles.json")
_APART = 4.0  # times as many cells, at most


def find(kernel: str, problem: Problem) -> dict[str, Any] | None:
    """The entry of a kernel on a problem, None where the table has none of its class."""
    if problem.device.type != "cuda" or not entries():
        return None
    return find_for(_capability(problem.device), kernel, problem)


def find_for(capability: tuple[int, int], kernel: str, problem: Problem) -> dict[str, Any] | None:
    """The same for a GPU of a compute capability."""
    name = str(problem.dtype).removeprefix("torch.")
    if problem.dtype == torch.float32 and _gpu.precision(problem.dtype) == "tf32":
        name = "tf32"
    return _find(capability, kernel, problem, name)


@functools.lru_cache(maxsize=4096)
def _find(capability: tuple[int, int], kernel: str, problem: Problem, dtype: str) -> dict[str, Any] | None:
    wanted = {"capability": list(capability), "kernel": kernel, "dtype": dtype}
    near = [
        (apart, at, entry)
        for at, entry in enumerate(entries())
        if all(entry[key] == value for key, value in wanted.items())
        and (apart := _apart(entry["shape"], problem)) <= math.log2(_APART)
    ]
    return min(near)[2] if near else None


@functools.cache
def entries() -> list[dict[str, Any]]:
    """All entries; none where no table ships."""
    if not PATH.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


def _apart(shape: dict[str, int], problem: Problem) -> float:
    """How many times two lie between the cells of two problems of one class; infinite for other classes."""
    same = shape["groups"] == problem.groups and shape["taps"] == problem.taps
    if not same or any(_power(shape[name]) != _power(getattr(problem, name)) for name in ("unit", "outs")):
        return math.inf
    return abs(math.log2(shape["cells"] / problem.cells))


def _power(length: int) -> int:
    return (length - 1).bit_length()


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
