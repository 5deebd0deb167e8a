"""A run killed at any moment and resumed has the losses of an uninterrupted one."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("run_tiny.py")


def start_tiny(folder: Path, *arguments: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ending(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what was printed."""
    printed = process.communicate(timeout=120)[1]
    return process.returncode, printed


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_killed_run_continues_exactly(tmp_path: Path) -> None:
    uninterrupted = start_tiny(tmp_path / "whole")
    killed = tmp_path / "killed"
    # Between checkpoints, in the middle of an epoch; and after a validation.
    assert ending(start_tiny(killed, 7))[0] == -signal.SIGKILL
    assert ending(start_tiny(killed, 11))[0] == -signal.SIGKILL
    # With Ctrl-C and a polite end, the very step is saved, or the validation that is due there.
    asked = tmp_path / "asked"
    code, printed = ending(start_tiny(asked, 3, 0, signal.SIGINT))
    assert code == 1
    assert "Interrupted. Continue from the checkpoint of step 3 with: pliant train --resume" in printed
    code, printed = ending(start_tiny(asked, 5, 2, signal.SIGINT))
    assert (code, "checkpoint of step 5" in printed) == (1, True)
    code, printed = ending(start_tiny(asked, 9, 0, signal.SIGTERM))
    assert (code, "checkpoint of step 9" in printed) == (128 + signal.SIGTERM, True)
    # To the end, now with two workers.
    for run in (killed, asked):
        assert ending(start_tiny(run, 0, 2))[0] == 0
    assert ending(uninterrupted)[0] == 0
    for run in (killed, asked):
        assert_same_run(tmp_path / "whole", run)


def assert_same_run(whole: Path, killed: Path) -> None:
    for name in ("train.csv", "val.csv"):
        assert (killed / name).read_text() == (whole / name).read_text()
    steps = [line.split(",")[0] for line in (killed / "train.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 13)]
    for name in ("last", "best"):
        path = Path("checkpoints") / f"{name}.safetensors"
        one, other = load_file(whole / path), load_file(killed / path)
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list((killed / "checkpoints").glob("*.part"))


def test_losses_are_worth_comparing() -> None:
    """The tiny run has random transforms, dropout and more than one epoch, or the test above would be void."""
    spec = importlib.util.spec_from_file_location("run_tiny", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    train = program.TinyData.train
    assert len(train) < program.STEPS * 3
    assert any(isinstance(module, torch.nn.Dropout) for module in program.detector().modules())
    assert not torch.equal(train[0][0], train[0][0])
