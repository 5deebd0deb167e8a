"""Steps that time all implementations on a problem: forward, and forward with backward; on the device and eager."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from pliant.bench.gate import check, expected
from pliant.bench.gpu import roofline
from pliant.bench.gpu.clock import Captured, Clock, quartiles
from pliant.bench.gpu.peers import BESIDE_DEFORMOPS, EVERYWHERE, NOT_CAPTURED, PLIANT, Maker, deformops
from pliant.bench.gpu.problems import Problem, multiplying, problems
from pliant.bench.gpu.steps import Absent, Place, Results, Step, described
from pliant.bench.gpu.warm import Groups, compile_tuned
from pliant.bench.implementation import InTorch
from pliant.bench.measure import FORWARD, TRAINING

PASSES = (FORWARD, TRAINING)
_SECONDS = 0.15  # of device time, for a problem and pass
_TAKES = {1: 2.0, 8: 2.5, 32: 5.0}  # seconds of a step, by batch
_WITH_DEFORMOPS = 8  # problems
_TUNING_ITSELF = 12.0  # seconds of one
_COMPILING_FOR_IT = 60.0  # seconds of the first, for its forty configurations on sixteen cores
_COMPILING = 8.0  # seconds more where a group of problems compiles

Ceilings = Callable[[], "roofline.Ceilings | None"]


def steps(place: Place, ceilings: Ceilings) -> Iterator[Step]:
    """Yield a step for each problem, the most telling first."""
    every = problems(place)
    groups = Groups(every)
    for problem in every:
        takes = _TAKES.get(problem.row.batch, 2.0) + (_COMPILING if groups.first(problem) else 0)
        yield Step("speed", f"speed of {problem.name}", takes, partial(_measure, problem, ceilings, groups))


def steps_beside_deformops(place: Place, ceilings: Ceilings) -> Iterator[Step]:
    """Yield steps that time the first problems again, together with deformops."""
    for at, problem in enumerate(problems(place)[: 1 if place.tiny else _WITH_DEFORMOPS]):
        run = partial(_measure_beside_deformops, problem, ceilings)
        takes = _TUNING_ITSELF + (0 if at else _COMPILING_FOR_IT)
        yield Step("speed", f"speed beside deformops of {problem.name}", takes, run)


def _measure(problem: Problem, ceilings: Ceilings, groups: Groups, place: Place) -> Results:
    groups.ensure(problem, place)
    yield from _timed(problem, EVERYWHERE, ceilings, place)


def _measure_beside_deformops(problem: Problem, ceilings: Ceilings, place: Place) -> Results:
    made = deformops(problem, problem.tensors(place.device))  # or it is absent, and the step with it
    compile_tuned(place, lambda: made.gradients(made.grad))
    yield from _timed(problem, BESIDE_DEFORMOPS, ceilings, place)


def _timed(problem: Problem, makers: Mapping[str, Maker], ceilings: Ceilings, place: Place) -> Results:
    torch.backends.cudnn.benchmark = True
    with multiplying(problem.dtype):
        yield from _everyone(problem, makers, ceilings(), Clock(place))


def _everyone(
    problem: Problem, makers: Mapping[str, Maker], ceilings: roofline.Ceilings | None, clock: Clock
) -> Results:
    tensors = problem.tensors(clock.place.device)
    made: dict[str, InTorch] = {}
    fields: dict[str, dict[str, Any]] = {}
    for name, maker in makers.items():
        try:
            made[name] = maker(problem, tensors)
            fields[name] = checked(problem, made[name])
        except Exception as error:  # one that cannot run is a line, and the others are timed
            made.pop(name, None)
            yield {"key": problem.key, "implementation": name, **described(error)}
            if name == PLIANT and not isinstance(error, Absent):
                raise
    for what in PASSES:
        calls = {name: partial(_call, each, what) for name, each in made.items()}
        captured = {name: clock.capture(call, NOT_CAPTURED.get(name, "")) for name, call in calls.items()}
        on_device = clock.device_seconds({name: each.run for name, each in captured.items()}, _SECONDS)
        graphs = {name: _graph(each) for name, each in captured.items()}
        del captured
        eager = clock.eager_seconds(calls)
        for name, call in calls.items():
            yield {
                "key": problem.key,
                "pass": what,
                "implementation": name,
                **fields[name],
                "device": quartiles(on_device[name]) | {"rounds": len(on_device[name])} | graphs[name],
                "eager": quartiles(eager[name]) | {"rounds": len(eager[name])},
                "peak_mib": _mib(clock.peak_bytes(call)),
                **share(problem, what, ceilings, quartiles(on_device[name])["median_ms"] / 1e3),
            }


def checked(problem: Problem, implementation: InTorch) -> dict[str, Any]:
    """Compare an implementation with float64 on the tensors that it receives, as they were rounded."""
    given = {name: value.detach() for name, value in implementation.arguments.items()}
    wanted = expected(problem.row, given | {"grad": implementation.grad}, ignored=implementation.ignored)
    verdict = check(implementation, wanted)
    right = verdict.error <= implementation.tolerance
    error = float(f"{verdict.error:.3g}") if math.isfinite(verdict.error) else None
    return {"error64": error, "worst": verdict.where, "tolerance": implementation.tolerance, "right": right}


def share(problem: Problem, what: str, ceilings: roofline.Ceilings | None, seconds: float) -> dict[str, Any]:
    """Return the ratio of the shortest possible time to the measured one, and what limits it."""
    if ceilings is None:
        return {}
    floor, bound = ceilings.floor(problem, what)
    return {"roofline": float(f"{floor / seconds:.3g}"), "bound": bound}


def _call(implementation: InTorch, what: str) -> object:
    if what == TRAINING:
        return implementation.gradients(implementation.grad)
    return implementation.forward()


def _graph(captured: Captured) -> dict[str, Any]:
    return {"graph": captured.graph} | ({"why_no_graph": captured.why_not} if captured.why_not else {})


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**20, 3)
