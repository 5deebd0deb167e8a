"""Runs a model of other people as its authors run it on the CPU, and on Pliant: differences first, then times."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

Patch = Callable[[], AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model with random weights.

    Args:
        name: name of the row.
        packages: distributions that it needs; their versions are printed.
        line: what a user writes to run it on Pliant.
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
    build: Callable[[], nn.Module]
    outputs: Callable[[nn.Module, torch.dtype], Any]
    loss: Callable[[nn.Module, torch.dtype], Tensor]
    ours: Patch
    theirs: Patch | None = contextlib.nullcontext
    baseline: str = "torchvision"
    no_float64: str = ""


def measure(entry: Entry, rounds: int = 3) -> dict[str, Any]:
    """A row: versions, largest differences, least times. Only `absent` if a package is not installed."""
    row: dict[str, Any] = {"name": entry.name, "line": entry.line}
    try:
        row["packages"] = {name: importlib.metadata.version(name) for name in entry.packages}
    except importlib.metadata.PackageNotFoundError as error:
        return row | {"absent": error.name}
    row |= {
        "baseline": entry.baseline if entry.theirs else "nothing",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
    if entry.theirs is not None:
        if not entry.no_float64:
            row["float64"] = _differences(entry, torch.float64)
        row["float32"] = _differences(entry, torch.float32)
    row["no_float64"] = entry.no_float64
    row["seconds"] = _times(entry, rounds)
    return row


def _differences(entry: Entry, dtype: torch.dtype) -> dict[str, float]:
    """The largest difference of outputs and of gradients, as a fraction of the largest value."""
    found = []
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of the tensors that models make themselves
    try:
        for patch in (entry.theirs, entry.ours):
            assert patch is not None
            model = _built(entry, dtype)  # whose batch norms have seen nothing yet
            with patch():
                found.append((_forward(entry, model, dtype), _step(entry, model, dtype)))
    finally:
        torch.set_default_dtype(default)
    expected, ours = found
    return dict(zip(("outputs", "gradients"), map(_difference, ours, expected), strict=True))


def _times(entry: Entry, rounds: int) -> dict[str, dict[str, float]]:
    """The least seconds of `rounds` calls each, by turns."""
    model, least = _built(entry, torch.float32), {}
    for what, run in (("forward", _forward), ("training step", _step)):
        sides = {"without": entry.theirs, "pliant": entry.ours}
        seconds: dict[str, list[float]] = {name: [] for name, patch in sides.items() if patch}
        for turn in range(rounds + 1):
            for name, patch in sides.items():
                if patch is None:
                    continue
                with patch():
                    begin = time.perf_counter()
                    run(entry, model, torch.float32)
                    took = time.perf_counter() - begin
                if turn:  # the first one warms up
                    seconds[name].append(took)
        least[what] = {name: min(each) for name, each in seconds.items()}
    return least


def _built(entry: Entry, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    with entry.ours():  # mmcv's layers cannot be built without
        return entry.build().to(dtype)


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


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def tensors(found: Any) -> list[Tensor]:
    """The floating-point tensors of nested results."""
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() else []
    if isinstance(found, dict):
        found = list(found.values())
    return [part for each in found for part in tensors(each)] if isinstance(found, (list, tuple)) else []


def moved(model: nn.Module, names: tuple[str, ...], std: float = 0.01) -> nn.Module:
    """Draw the weights of the offset branches, which are initially zero, so that samples lie between cells."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and any(part in name for part in names):
            nn.init.normal_(parameter, std=std)
    return model


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
        "| Model | Packages | Instead of | Outputs differ by | Gradients differ by | Forward | Training step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [" | ".join(("| " + row["name"], *_cells(row))) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "absent" in row:
        return (f"`{row['absent']}` is not installed", *["" for _ in range(5)])
    packages = ", ".join(f"{name} {version}" for name, version in row["packages"].items())
    differences = [
        ", ".join(f"{row[dtype][what]:.0e}" for dtype in ("float32", "float64") if dtype in row)
        for what in ("outputs", "gradients")
    ]
    return packages, row["baseline"], *differences, *(_time(each) for each in row["seconds"].values())


def _time(seconds: dict[str, float]) -> str:
    if "without" not in seconds:
        return f"{seconds['pliant']:.2f} s"
    ratio = seconds["without"] / seconds["pliant"]
    return f"{seconds['without']:.2f} → {seconds['pliant']:.2f} s, {ratio:.1f} times"
