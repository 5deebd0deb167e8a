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


def start_tiny(folder: Path, *arguments: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_killed_run_continues_exactly(tmp_path: Path) -> None:
    uninterrupted = start_tiny(tmp_path / "whole")
    killed = tmp_path / "killed"
    # Between checkpoints, in the middle of an epoch; and after a validation.
    for step in (7, 11):
        assert start_tiny(killed, step).wait(timeout=120) == -signal.SIGKILL
    assert start_tiny(killed, 0, 2).wait(timeout=120) == 0  # to the end, now with two workers
    assert uninterrupted.wait(timeout=120) == 0
    for name in ("train.csv", "val.csv"):
        assert (killed / name).read_text() == (tmp_path / "whole" / name).read_text()
    steps = [line.split(",")[0] for line in (killed / "train.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 13)]
    for name in ("last", "best"):
        path = Path("checkpoints") / f"{name}.safetensors"
        one, other = load_file(tmp_path / "whole" / path), load_file(killed / path)
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
