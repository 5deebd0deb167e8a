"""Memory beyond the tensors, measured on a call whose need is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pliant.bench import memory
from pliant.bench.memory import FORWARD, measure_memory, needs, why_not
from pliant.bench.rows import ConvRow, Tensors

MIB = 2**20
linux = pytest.mark.skipif(bool(why_not()), reason=f"memory cannot be measured here: {why_not()}")


def holding(scratch: int, result: int) -> memory.Call:
    def call(row: ConvRow, tensors: Tensors) -> Sequence[Tensor]:
        if row.height > 12:  # not the tiny problem
            torch.ones(scratch, dtype=torch.uint8)
        return (torch.ones(result, dtype=torch.uint8),)

    return call


@linux
@pytest.mark.parametrize(("scratch", "result"), [(96 * MIB, 40 * MIB), (48 * MIB, 1 * MIB)])
def test_scratch_counts_and_results_do_not(scratch: int, result: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch is given back before the result is there: what counts is the peak less the result."""
    monkeypatch.setitem(memory.CALLS, "known", {FORWARD: holding(scratch, result)})
    assert needs(ConvRow(1, 8, 8, 20, 20), "known", FORWARD) == pytest.approx(scratch - result, abs=3 * MIB)


@linux
def test_torchvisions_columns_show_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forward writes the columns of the whole map: channels * 9 * height * width floats."""
    monkeypatch.setattr(memory, "CALLS", {"torchvision": memory.CALLS["torchvision"]})
    monkeypatch.setattr(memory, "PASSES", (FORWARD,))
    row = ConvRow(1, 32, 8, 80, 100)
    (found,) = measure_memory(row, threads=1).needs[FORWARD].values()
    columns = 32 * 9 * 80 * 100 * 4
    assert columns - MIB < found < columns + 8 * MIB


def test_a_failing_process_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 1, "", "Traceback ...\nMemoryError: 9 TiB\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(RuntimeError, match=r"memory of conv2d, forward, at 1, 8→8, 20×20.*MemoryError: 9 TiB"):
        measure_memory(ConvRow(1, 8, 8, 20, 20), threads=1)


def test_elsewhere_it_says_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert why_not() == "memory is measured through Linux's /proc, and this is darwin"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory, "_RESET", tmp_path / "none" / "clear_refs")
    assert "does not let a process reset its peak" in str(why_not())
