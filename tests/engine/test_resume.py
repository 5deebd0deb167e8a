"""A run killed at any moment and resumed has the losses of an uninterrupted one."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import aside
import pytest
import torch
from engine import run_tiny
from safetensors.torch import load_file


def start_tiny(folder: Path, *arguments: int) -> BaseProcess:
    return aside.start(printed_by(folder, *arguments), run_tiny.main, str(folder), *arguments)


def printed_by(folder: Path, *arguments: int) -> Path:
    return folder.with_name("-".join(map(str, ("printed", folder.name, *arguments))))


def ending(folder: Path, *arguments: int) -> tuple[int, str]:
    """The exit code, and what was printed."""
    code = aside.ending(start_tiny(folder, *arguments))
    return code, printed_by(folder, *arguments).read_text()


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a system with SIGKILL")
def test_killed_run_continues_exactly(tmp_path: Path) -> None:
    uninterrupted = start_tiny(tmp_path / "whole")
    killed = tmp_path / "killed"
    # Between checkpoints, in the middle of an epoch; and after a validation.
    assert ending(killed, 7)[0] == -signal.SIGKILL
    assert ending(killed, 11)[0] == -signal.SIGKILL
    # With Ctrl-C and a polite end, the very step is saved, or the validation that is due there.
    asked = tmp_path / "asked"
    code, printed = ending(asked, 3, 0, signal.SIGINT)
    assert code == 1
    assert "Interrupted. Continue from the checkpoint of step 3 with: pliant train --resume" in printed
    code, printed = ending(asked, 5, 2, signal.SIGINT)
    assert (code, "checkpoint of step 5" in printed) == (1, True)
    code, printed = ending(asked, 9, 0, signal.SIGTERM)
    assert (code, "checkpoint of step 9" in printed) == (128 + signal.SIGTERM, True)
    # To the end, now with two workers.
    for run in (killed, asked):
        assert ending(run, 0, 2)[0] == 0
    assert aside.ending(uninterrupted) == 0
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
    train = run_tiny.TinyData.train
    assert len(train) < run_tiny.STEPS * 3
    assert any(isinstance(module, torch.nn.Dropout) for module in run_tiny.detector().modules())
    assert not torch.equal(train[0][0], train[0][0])
