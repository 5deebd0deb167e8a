"""Compiles the kernels of many calls on all cores at once, so that steps on the GPU do not wait for the compiler."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from pliant.bench.gpu.calls import Call
from pliant.bench.gpu.problems import DTYPES, LAYOUTS, Problem, multiplying
from pliant.bench.gpu.steps import Place
from pliant.ops import _gpu
from pliant.ops.deform_conv2d import gpu as convolution
from pliant.ops.deform_conv2d.reference import Geometry

Thunk = Callable[[], object]


@contextmanager
def _compiled_not_run() -> Iterator[None]:
    """Let Pliant's launches compile in threads without running. At the end all have compiled."""
    modes = importlib.import_module("triton.runtime._async_compile")

    def compile_only(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: Any) -> None:
        kernel.warmup(**arguments, grid=grid, **options)

    with (
        ThreadPoolExecutor(os.cpu_count()) as executor,
        # What does not compile says so when it is run.
        modes.AsyncCompileMode(executor, ignore_errors=True),
        mock.patch.object(_gpu, "launch", compile_only),
    ):
        yield


def compile_together(place: Place, thunks: Iterable[Thunk]) -> None:
    """Compile the kernels that the thunks would launch. Thunks call the launchers directly, not through autograd.

    Nothing happens if this version of Triton cannot compile in threads. Kernels then compile at their first launch.
    """
    if not place.on_gpu:
        return
    try:
        importlib.import_module("triton.runtime._async_compile")
    except ImportError:
        return
    with _compiled_not_run():
        for thunk in thunks:
            thunk()
    place.wait()


def compile_tuned(place: Place, thunk: Thunk) -> None:
    """Compile all configurations of another library's autotuned kernels at once.

    The thunk may use autograd, whose backward then runs in this thread.
    """
    if not place.on_gpu:
        return
    try:
        modes = importlib.import_module("triton.runtime._async_compile")
    except ImportError:
        return
    tuner = importlib.import_module("triton.runtime.autotuner").Autotuner

    def compile_only(self: Any, *arguments: Any, warmup: bool = False, **named: Any) -> None:
        self.warmup(*arguments, **named)

    with (
        ThreadPoolExecutor(os.cpu_count()) as executor,
        modes.AsyncCompileMode(executor, ignore_errors=True),
        mock.patch.object(tuner, "run", compile_only),
        torch.autograd.set_multithreading_enabled(False),
    ):
        thunk()
    place.wait()


def launcher(problem: Problem, tensors: dict[str, torch.Tensor], backward: bool) -> Thunk:
    """Return a call of the forward's or the backward's launcher on a problem's tensors."""
    row = problem.row
    input, offset, weight, grad = (tensors[name] for name in ("input", "offset", "weight", "grad"))
    mask = tensors.get("mask")
    geometry = Geometry((1, 1), (row.padding,) * 2, (row.dilation,) * 2, "paper")
    if backward:
        return lambda: convolution.deform_conv2d_backward(grad, input, offset, weight, mask, geometry)
    return lambda: convolution.deform_conv2d(input, offset, weight, None, mask, geometry)


def launchers(call: Call, dtype: str, layout: str) -> list[Thunk]:
    """Return calls of both launchers on a convolution's tensors."""
    given = {name: value.detach() for name, value in call.prepared(dtype, layout).items()}
    input, offset, weight, bias, mask = map(given.get, ("input", "offset", "weight", "bias", "mask"))
    assert input is not None
    assert offset is not None
    assert weight is not None
    stride, padding, dilation = ((call.options[name],) * 2 for name in ("stride", "padding", "dilation"))
    geometry = Geometry(stride, padding, dilation, call.options["border"])
    size = (input.shape[0], weight.shape[0], *offset.shape[2:])
    grad = torch.empty(size, dtype=input.dtype, device=input.device)
    return [
        lambda: convolution.deform_conv2d(input, offset, weight, bias, mask, geometry),
        lambda: convolution.deform_conv2d_backward(grad, input, offset, weight, mask, geometry),
    ]


def blank(problem: Problem, device: str) -> dict[str, torch.Tensor]:
    """Return uninitialised tensors with a problem's shapes and strides."""
    row, layout = problem.row, LAYOUTS[problem.layout]
    size, taps = (row.height, row.width), row.kernel**2
    shapes = {
        "input": (row.batch, row.channels, *size),
        "weight": (row.out_channels, row.channels // row.groups, row.kernel, row.kernel),
        "grad": (row.batch, row.out_channels, *size),
    }
    found = {
        name: torch.empty(shape, dtype=DTYPES[problem.dtype], device=device, memory_format=layout)
        for name, shape in shapes.items()
    }
    found["offset"] = torch.empty((row.batch, 2 * row.offset_groups * taps, *size), device=device)
    if problem.masked:
        found["mask"] = torch.empty(
            (row.batch, row.offset_groups * taps, *size), dtype=DTYPES[problem.dtype], device=device
        )
    return found


class Groups:
    """Compiles the kernels of some problems together when the first of them is asked for."""

    def __init__(self, problems: list[Problem], each: int = 12) -> None:
        self._group = {problem: problems[at - at % each : at - at % each + each] for at, problem in enumerate(problems)}
        self._compiled: set[Problem] = set()

    def first(self, problem: Problem) -> bool:
        """Whether a problem is the first of its group."""
        return self._group[problem][0] == problem

    def ensure(self, problem: Problem, place: Place) -> None:
        """Compile for a problem's group, unless that was done."""
        if not place.on_gpu or problem in self._compiled:
            return
        group = self._group[problem]
        self._compiled.update(group)
        for dtype in dict.fromkeys(each.dtype for each in group):
            with multiplying(dtype):
                compile_together(
                    place, (thunk for each in group if each.dtype == dtype for thunk in _both(each, place))
                )


def _both(problem: Problem, place: Place) -> list[Thunk]:
    tensors = blank(problem, place.device)
    return [launcher(problem, tensors, backward) for backward in (False, True)]
