"""Steps that time launch settings: all candidates of each kernel, on the shapes of a backbone."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from pliant.bench.gpu import calls, pruning, warm
from pliant.bench.gpu.clock import Clock, quartiles
from pliant.bench.gpu.estimate import GPUS
from pliant.bench.gpu.peers import TOLERANCE
from pliant.bench.gpu.problems import DTYPES, FIRST, Problem, multiplying, shrunk
from pliant.bench.gpu.steps import Place, Results, Step, described
from pliant.ops.deform_conv2d import reference
from pliant.ops.deform_conv2d.reference import Geometry

settings: Any = importlib.import_module("pliant.ops.deform_conv2d.tiles")

_SECONDS = 0.25  # of device time, for some candidates that take turns
_TOGETHER = 12  # candidates that take turns, and the chosen tiles with them
_DESIGN, _BEFORE = 4.0, 3.0  # seconds of a step, and of one before its candidates
_PER_CANDIDATE = 0.25  # seconds that one takes with its compiling, on sixteen cores
DESIGNS = {"forward": "forward_by_columns", "backward": "backward_by_columns"}

# The pass that launches a kernel, and whether by columns.
USED = {
    "forward": ("forward", False),
    "columns": ("forward", True),
    "backward_samples": ("backward", False),
    "backward_weight": ("backward", False),
    "columns_backward": ("backward", True),
    "gather": ("backward", True),
}


def steps(place: Place) -> Iterator[Step]:
    """Yield, for each dtype, the steps of the designs, then a step for each shape and kernel."""
    for _, group in groupby(problems(place), key=lambda problem: problem.dtype):
        some = list(group)
        for problem in some:
            for what in DESIGNS:
                run = partial(_designs, problem, what)
                yield Step("tuning", f"tuning of the {what}'s design: {problem.name}", _DESIGN, run)
        for problem in some:
            for kernel in settings.KERNELS:
                takes = _BEFORE + _PER_CANDIDATE * len(candidates(place, problem, kernel))
                yield Step("tuning", f"tuning of {kernel}: {problem.name}", takes, partial(_kernel, problem, kernel))


def problems(place: Place) -> list[Problem]:
    """Return the shapes of a backbone for one image and for eight, half precision first."""
    rows = [replace(row, batch=batch, spread=1.0) for batch in (1, 8) for row in FIRST]
    dtypes = ["bfloat16", "float16", "float32", "tf32"]
    if place.tiny:
        rows, dtypes = [replace(shrunk(FIRST[0]), batch=1)], ["bfloat16"]
    return [Problem(row, dtype) for dtype in dtypes for row in rows]


def candidates(place: Place, problem: Problem, kernel: str) -> list[Any]:
    """Return the candidates of a kernel: those in the place's list, or all if the list has none."""
    every: Sequence[Any] = settings.candidates(kernel, DTYPES[problem.dtype])
    if place.candidates:
        about = {"kernel": kernel, "dtype": problem.dtype, "shape": problem.shape}
        kept = pruning.kept(place.candidates, _capability(place), about)
        every = [settings.Tiles(**tiles) for tiles in kept] or every
    return list(islice(every, 2 if place.tiny else None))


def _capability(place: Place) -> int:
    """Return the device's compute capability. A rehearsal uses the first one that candidates are pruned for."""
    major, minor = torch.cuda.get_device_capability() if place.on_gpu else divmod(max(GPUS), 10)
    return 10 * major + minor


def _designs(problem: Problem, what: str, place: Place) -> Results:
    settled = [{DESIGNS[what]: by_columns} for by_columns in (False, True)]

    def fields(each: Mapping[str, Any]) -> dict[str, Any]:
        return {"design": "columns" if each[DESIGNS[what]] else "fused", "chosen": not each[DESIGNS[what]]}

    with multiplying(problem.dtype):
        yield from _measured(place, problem, what, settled, fields)


def _kernel(problem: Problem, kernel: str, place: Place) -> Results:
    what, by_columns = USED[kernel]
    design = {DESIGNS[what]: by_columns}
    some = candidates(place, problem, kernel)
    settled = [design, *(design | {kernel: tiles} for tiles in some)]

    kind = DTYPES[problem.dtype]
    about = settings.Problem(
        dtype=kind,
        device=torch.device(place.device),
        far=False,
        sampled=problem.row.channels // problem.row.offset_groups,
        offset_groups=problem.row.offset_groups,
        **problem.shape,
    )

    def fields(each: Mapping[str, Any]) -> dict[str, Any]:
        tiles = each[kernel] if kernel in each else settings.tiles(kernel, about)
        return {"kernel": kernel, "tiles": tiles._asdict(), "chosen": kernel not in each}

    with multiplying(problem.dtype):
        yield from _measured(place, problem, what, settled, fields)


def _measured(
    place: Place,
    problem: Problem,
    what: str,
    settled: Sequence[Mapping[str, Any]],
    fields: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> Results:
    """Yield the time and the error of a pass for each of some settings. The first one takes part in all rounds."""
    clock = Clock(place)
    tensors = problem.tensors(place.device)
    thunk = warm.launcher(problem, tensors, what == "backward")
    warm.compile_together(place, (partial(_under, each, thunk) for each in settled))
    want = _reference(problem, tensors, what)
    first, *others = settled
    base = None
    for start in range(0, max(len(others), 1), _TOGETHER):
        runs: dict[int, Any] = {}
        seen = {0: first} | dict(enumerate(others[start : start + _TOGETHER], start + 1))
        head = {"key": problem.key, "shape": problem.shape, "pass": what}
        errors = {}
        for number, each in seen.items():
            try:
                with settings.forced(**each):
                    errors[number] = _verdict(problem, thunk(), want)
                    runs[number] = clock.capture(partial(_under, each, thunk)).run
            except Exception as error:  # more registers or memory than there are, for one
                place.wait()
                yield head | fields(each) | described(error)
        found = clock.device_seconds({str(number): run for number, run in runs.items()}, _SECONDS)
        for number in runs:
            seconds = found[str(number)]
            if number or base is None:
                extra = {"to_chosen": _ratio(seconds, found.get("0"))} if number else {}
                yield head | fields(seen[number]) | errors[number] | {"device": quartiles(seconds)} | extra
        base = found.get("0")


def _under(each: Mapping[str, Any], thunk: Callable[[], object]) -> object:
    with settings.forced(**each):
        return thunk()


def _ratio(seconds: list[float], base: list[float] | None) -> float | None:
    if not base or not statistics.median(base):
        return None
    return round(statistics.median(seconds) / statistics.median(base), 4)


def _reference(problem: Problem, tensors: Mapping[str, Tensor], what: str) -> list[Tensor]:
    row = problem.row
    geometry = Geometry((1, 1), (row.padding,) * 2, (row.dilation,) * 2, "paper")
    input, offset, weight, grad = (tensors[name].double() for name in ("input", "offset", "weight", "grad"))
    if what == "backward":
        found = reference.deform_conv2d_backward(grad, input, offset, weight, None, geometry)
        return [each for each in found if each is not None]
    return [reference.deform_conv2d(input, offset, weight, None, None, geometry)]


def _verdict(problem: Problem, got: Any, want: list[Tensor]) -> dict[str, Any]:
    mine = [got] if isinstance(got, torch.Tensor) else [each for each in got if each is not None]
    worst = max(calls.errors(dict(enumerate(mine)), dict(enumerate(want))).values())
    error = float(f"{worst:.3g}") if math.isfinite(worst) else None
    return {"error64": error, "right": worst <= TOLERANCE[problem.dtype]}
