"""What an operator needs beyond its tensors: one call in a fresh process, its peak of resident memory by Linux.

Before the call the process holds the tensors that go in and has run the operator on a tiny problem, so that
libraries and threads are there. Of the growth to the peak, the tensors that come out are not counted. The backward
is called directly, without a forward before it whose scratch memory it could take over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from pliant import ops
from pliant.bench.rows import ConvRow, Tensors

FORWARD, BACKWARD = "forward", "backward"
PASSES = (FORWARD, BACKWARD)
Call = Callable[[ConvRow, Tensors], Sequence[Tensor]]
"""Runs a pass on a row's tensors and returns what comes out."""

# Blocks from 64 KiB on come from the system and go back to it, so that none is hidden in what was freed before.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class MemoryResult:
    """Bytes that each implementation needs beyond its tensors, by pass and name."""

    name: str
    needs: dict[str, dict[str, int]]


def why_not() -> str | None:
    """Why memory cannot be measured here; None where it can."""
    if not sys.platform.startswith("linux"):
        return f"memory is measured through Linux's /proc, and this is {sys.platform}"
    try:
        _RESET.write_text("5")
    except OSError as error:
        return f"this system does not let a process reset its peak of memory: {_RESET}: {error.strerror}"
    return None if "VmHWM" in _STATUS.read_text() else f"{_STATUS} has no VmHWM, the peak of resident memory"


def measure_memory(row: ConvRow, threads: int) -> MemoryResult:
    """Measure all implementations on a row, each pass in a process of its own.

    Raises:
        RuntimeError: if one fails, with the end of what it said.
    """
    needs = {what: {name: _in_fresh_process(row, name, what, threads) for name in CALLS} for what in PASSES}
    return MemoryResult(row.name, needs)


def _in_fresh_process(row: ConvRow, name: str, what: str, threads: int) -> int:
    request = {"row": dataclasses.asdict(row), "name": name, "what": what, "threads": threads}
    command = [sys.executable, "-m", "pliant.bench.memory_process", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | _ALLOCATOR)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"measuring the memory of {name}, {what}, at {row.name} failed: {last}")
    return int(json.loads(done.stdout)["needs"])


def needs(row: ConvRow, name: str, what: str) -> int:
    """Bytes that one call needs beyond its tensors, in this process, which should be a fresh one."""
    call = CALLS[name][what]
    tiny = dataclasses.replace(
        row, batch=1, channels=8 * row.offset_groups, out_channels=8, groups=1, height=12, width=12
    )
    call(tiny, tiny.tensors())
    tensors = row.tensors()
    _RESET.write_text("5")
    before = _peak()
    results = call(row, tensors)
    return _peak() - before - sum(result.nbytes for result in results)


def _peak() -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _plain(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
    return (F.conv2d(tensors["input"], tensors["weight"], None, 1, row.padding, row.dilation, row.groups),)


def _plain_backward(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
    where = [1, 1], [row.padding] * 2, [row.dilation] * 2, False, [0, 0], row.groups
    wanted = [True, True, False]
    arguments = tensors["grad"], tensors["input"], tensors["weight"], None, *where, wanted
    return torch.ops.aten.convolution_backward(*arguments)[:2]


def _torchvision(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
    arguments = tensors["input"], tensors["offset"], tensors["weight"]
    return (torchvision.ops.deform_conv2d(*arguments, padding=row.padding, dilation=row.dilation),)


def _torchvision_backward(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
    values = (tensors[name] for name in ("grad", "input", "weight", "offset"))
    no_mask, no_bias = tensors["input"].new_zeros(row.batch, 1), tensors["input"].new_zeros(row.out_channels)
    where = 1, 1, row.padding, row.padding, row.dilation, row.dilation, row.groups, row.offset_groups, False
    return torch.ops.torchvision._deform_conv2d_backward(*values, no_mask, no_bias, *where)


def _pliant(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
    arguments = tensors["input"], tensors["offset"], tensors["weight"]
    return (ops.deform_conv2d(*arguments, padding=row.padding, dilation=row.dilation),)


def _pliant_backward(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
    values = (tensors[name] for name in ("grad", "input", "offset", "weight"))
    where = [1, 1], [row.padding] * 2, [row.dilation] * 2, "paper"
    return torch.ops.pliant.deform_conv2d_backward(*values, None, *where)


CALLS: dict[str, dict[str, Call]] = {
    "conv2d": {FORWARD: _plain, BACKWARD: _plain_backward},
    "Pliant": {FORWARD: _pliant, BACKWARD: _pliant_backward},
    "torchvision": {FORWARD: _torchvision, BACKWARD: _torchvision_backward},
}
