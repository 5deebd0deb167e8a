"""Memory beyond the tensors, measured on a call whose need is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pliant.bench import memory
from pliant.bench.memory import FORWARD, measure_memory, why_not
from pliant.bench.rows import ConvRow

MIB = 2**20
linux = pytest.mark.skipif(bool(why_not()), reason=f"memory cannot be measured here: {why_not()}")


# What a call needs is known; it is asked in a process of its own, since memory that another test freed would hide it.
KNOWN = """
import torch
from pliant.bench import memory
from pliant.bench.rows import ConvRow

def call(row, tensors):
    if row.height > 12:  # not the tiny problem
        torch.ones(scratch, dtype=torch.uint8)
    return (torch.ones(result, dtype=torch.uint8),)

memory.CALLS["known"] = {memory.FORWARD: call}
for scratch, result in ((96 << 20, 40 << 20), (48 << 20, 1 << 20)):
    print(memory.needs(ConvRow(1, 8, 8, 20, 20), "known", memory.FORWARD))
"""


@linux
def test_scratch_counts_and_results_do_not() -> None:
    """The scratch is given back before the result is there: what counts is the peak less the result."""
    environment = os.environ | memory._ALLOCATOR
    command = [sys.executable, "-c", KNOWN]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert [int(line) for line in done.stdout.split()] == pytest.approx([56 * MIB, 47 * MIB], abs=3 * MIB)


@linux
@pytest.mark.slow
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
