"""Runs a model of other people as its authors run it on the CPU, and on Pliant: differences first, then times."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

import pliant
from pliant.ops import _native

Patch = Callable[[], AbstractContextManager[Any]]
_OFFSET_BRANCHES = ("conv_offset", "offset_conv", "modulator_conv", "offset_fc", "sampling_offsets")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model with random weights.

    Args:
        name: name of the row.
        packages: distributions that it needs; their versions are printed.
        line: what a user writes to run it on Pliant.
        input: what it runs on, as it is shown.
        build: builds the model.
        outputs: the tensors that the model computes from an input of a dtype.
        loss: the loss of a training step on an input of a dtype.
        ours: what `line` does, until it is undone.
        theirs: makes it run without Pliant. None if nothing does on the CPU.
        baseline: what runs the operator without Pliant.
        no_float64: why the model does not run in float64, empty if it does.
    """

    name: str
    packages: tuple[str, ...]
    line: str
    input: str
    build: Callable[[], nn.Module]
    outputs: Callable[[nn.Module, torch.dtype], Any]
    loss: Callable[[nn.Module, torch.dtype], Tensor]
    ours: Patch
    theirs: Patch | None = contextlib.nullcontext
    baseline: str = "torchvision"
    no_float64: str = ""


def measure(entry: Entry, rounds: int = 2) -> dict[str, Any]:
    """A row: versions, largest differences, least times. Only `absent` if a package is not installed."""
    row: dict[str, Any] = {"name": entry.name, "line": entry.line}
    try:
        row["packages"] = {name: importlib.metadata.version(name) for name in entry.packages}
    except importlib.metadata.PackageNotFoundError as error:
        return row | {"absent": error.name}
    row |= {
        "input": entry.input,
        "baseline": entry.baseline if entry.theirs else "nothing",
        "torch": torch.__version__,
        "pliant": pliant.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "no_float64": entry.no_float64,
    }
    if entry.theirs is not None and not entry.no_float64:
        row["float64"] = _rounds(entry, torch.float64, 1)[0]
    row["float32"], row["seconds"] = _rounds(entry, torch.float32, rounds)
    with entry.ours(), _kernel_calls() as row["kernel_calls"]:
        _forward(entry, _built(entry, torch.float32), torch.float32)
    return row


def _rounds(entry: Entry, dtype: torch.dtype, rounds: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The largest differences in the first round, as fractions of the largest value, and the least seconds of all.

    In each round, both sides run by turns on a model of their own, which has the same weights and statistics.
    """
    patches = {name: patch for name, patch in (("without", entry.theirs), ("pliant", entry.ours)) if patch}
    differences, seconds = {}, {what: dict.fromkeys(patches, math.inf) for what in ("forward", "training step")}
    with _default_dtype(dtype):
        models = {name: _built(entry, dtype) for name in patches}
        for turn in range(rounds):
            for (what, times), run in zip(seconds.items(), (_forward, _step), strict=True):
                found = {}
                for name, patch in patches.items():
                    with patch():
                        found[name], took = _timed(run, entry, models[name], dtype)
                    times[name] = min(times[name], took)
                if turn == 0 and len(found) == 2:
                    largest = found["without"].abs().max()
                    differences[what] = float((found["pliant"] - found["without"]).abs().max() / largest)
    return differences, seconds


def _timed(run: Callable[..., Tensor], entry: Entry, model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, float]:
    """The result and its seconds; those of the process on one thread, so that other load counts less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    found = run(entry, model, dtype)
    return found, clock() - begin


@contextlib.contextmanager
def _kernel_calls() -> Iterator[list[str]]:
    """The names of the compiled kernels that are called meanwhile: none, if a line has no effect on a model."""
    names: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            names.append(name)
            return getattr(kernels, name)

    kernels = _native.kernels
    with replaced(_native, "kernels", Watched()):
        yield names


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The dtype of the tensors that models make themselves."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _built(entry: Entry, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    with entry.ours():  # mmcv's layers cannot be built without
        model = entry.build().to(dtype)
    _move(model)
    return model


def _forward(entry: Entry, model: nn.Module, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return torch.cat([part.flatten() for part in tensors(entry.outputs(model.eval(), dtype))])


def _step(entry: Entry, model: nn.Module, dtype: torch.dtype) -> Tensor:
    """The gradients of all parameters. Dropout and drawn queries are the same in each call."""
    torch.manual_seed(1)
    wanted = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    found = torch.autograd.grad(entry.loss(model, dtype), wanted, allow_unused=True)
    return torch.cat([each.flatten() for each in found if each is not None])


def tensors(found: Any) -> list[Tensor]:
    """The floating-point tensors of nested results."""
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() else []
    if isinstance(found, dict):
        found = list(found.values())
    return [part for each in found for part in tensors(each)] if isinstance(found, (list, tuple)) else []


def _move(model: nn.Module) -> None:
    """Draw the weights of the offset branches, so that samples lie between cells, and set those of zero norms to 1.

    Branches are initially zero. Samples then lie exactly on cells, where the gradient of a position jumps from one side
    to the other, and rounding decides which one an implementation takes. Norms at the end of residual branches are zero
    in some models, so that the layers before them have no effect.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.weight is not None
            and not module.weight.any()
        ):
            nn.init.ones_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and any(branch in name for branch in _OFFSET_BRANCHES):
            nn.init.normal_(parameter, std=0.01)


@contextlib.contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for a while."""
    original = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, original)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| Model | Input | Instead of | Outputs differ by | Gradients differ by | Forward | Training step |",
        "| --- | --- | --- | --- | --- | ---: | ---: |",
    ]
    lines += ["| " + " | ".join((row["name"], *_cells(row))) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "absent" in row:
        return (f"`{row['absent']}` is not installed", *["" for _ in range(5)])
    if not row.get("kernel_calls", True):
        return (row["input"], row["baseline"], "**Pliant's kernels were not called**", *["" for _ in range(3)])
    differences = [
        ", ".join(f"{row[dtype][what]:.0e}" for dtype in ("float32", "float64") if what in row.get(dtype, ()))
        for what in ("forward", "training step")
    ]
    return row["input"], row["baseline"], *differences, *(_time(each) for each in row["seconds"].values())


def _time(seconds: dict[str, float]) -> str:
    """How many times as long the model takes without Pliant."""
    return f"{seconds['without'] / seconds['pliant']:.1f}" if "without" in seconds else "-"
