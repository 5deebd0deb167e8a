"""What the campaign launches: the shapes and settings whose kernels are compiled beforehand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pliant.bench.gpu import calls, small, tuning, warm
from pliant.bench.gpu.compiling import Launch, traced
from pliant.bench.gpu.estimate import Work
from pliant.bench.gpu.problems import DTYPES, FIRST, LAYOUTS, Problem, multiplying, problems
from pliant.bench.gpu.pruning import Choice
from pliant.bench.gpu.steps import Place
from pliant.ops.deform_conv2d import tiles as settings

_ON_GPU = Place("cuda")  # whose problems are of full size
_UNTOUCHED = Place("cpu")  # where tensors have no values
_DESIGNS = [dict.fromkeys(tuning.DESIGNS.values(), by_columns) for by_columns in (False, True)]


def table(capability: int) -> list[Launch]:
    """The kernels that ship, on a convolution with a mask, in both designs, and on a deformable pooling."""
    found = []
    for dtype in ("float16", "tf32"):
        call = calls.convolution("", FIRST[0], _UNTOUCHED.device)
        for design in _DESIGNS:
            with settings.forced(**design):
                found += _of(call, dtype, "channels last", capability)
        found += _of(calls.poolings(_UNTOUCHED)[2], dtype, "channels last", capability)
    return unique(found)


def campaign(first: int, capability: int) -> list[Launch]:
    """What the campaign launches with the settings that ship, in its order: the checks, and the `first` problems."""
    found = []
    rare, *others = calls.seldom(_UNTOUCHED)
    found += _of(rare, "bfloat16", "channels last", capability)
    for call in (rare, *others, calls.attention(_UNTOUCHED)):
        for dtype in DTYPES:
            found += _of(call, dtype, "contiguous", capability)
    for problem in problems(_ON_GPU)[:first]:
        found += _of_problem(problem, capability)
    for problem in tuning.problems(_ON_GPU):
        for design in _DESIGNS:
            with settings.forced(**design):
                found += _of_problem(problem, capability)
    rows = [calls.convolution(row.name, row, _UNTOUCHED.device) for row in calls.rows(_UNTOUCHED)]
    for call in (*calls.poolings(_UNTOUCHED), *rows):
        for dtype in DTYPES:
            for layout in LAYOUTS if dtype == "bfloat16" else ("channels last",):
                found += _of(call, dtype, layout, capability)
    for call in small.calls_of(_UNTOUCHED):
        for dtype in small.DTYPES:
            found += _of(call, dtype, "channels last", capability)
    return unique(found)


def choices(only: str, capability: int) -> Iterator[Choice]:
    """The candidates of the kernels on the problems that are tuned."""
    for problem in tuning.problems(_ON_GPU):
        if re.search(only, problem.name):
            for kernel in settings.KERNELS:
                some = settings.candidates(kernel, DTYPES[problem.dtype])
                about = {"kernel": kernel, "dtype": problem.dtype, "shape": problem.shape}
                yield Choice(about, work(problem), some, partial(_with_tiles, problem, kernel, capability))


def work(problem: Problem) -> Work:
    """A problem as the estimates take it."""
    row, kind = problem.row, DTYPES[problem.dtype]
    multiplied = problem.dtype if kind == torch.float32 else "half"
    others = {
        "channels": row.channels,
        "offset_groups": row.offset_groups,
        "inputs": row.batch * row.height * row.width,
    }
    return Work(**problem.shape, **others, size=kind.itemsize, multiplied=multiplied)


def unique(launches: Sequence[Launch]) -> list[Launch]:
    """One of those that run the same machine code."""
    return list({each.key: each for each in launches}.values())


def _with_tiles(problem: Problem, kernel: str, capability: int, some: Sequence[Any]) -> list[Launch]:
    """The launch of a kernel with each of some tiles."""
    what, by_columns = tuning.USED[kernel]
    name = "columns" if kernel == "columns_backward" else kernel
    found = []
    for tiles in some:
        with (
            traced(capability) as launches,
            multiplying(problem.dtype),
            settings.forced(**{tuning.DESIGNS[what]: by_columns, kernel: tiles}),
        ):
            warm.launcher(problem, warm.blank(problem, _UNTOUCHED.device), what == "backward")()
        found.append(next(each for each in launches if each.name == name))
    return found


def _of_problem(problem: Problem, capability: int) -> list[Launch]:
    """The launches of a problem's forward and backward."""
    tensors = warm.blank(problem, _UNTOUCHED.device)
    with traced(capability) as found, multiplying(problem.dtype):
        for backward in (False, True):
            warm.launcher(problem, tensors, backward)()
    return found


def _of(call: calls.Call, dtype: str, layout: str, capability: int) -> list[Launch]:
    """The launches of a call's forward and backward."""
    with traced(capability) as found, multiplying(dtype):
        call.results(call.prepared(dtype, layout))
    return found
