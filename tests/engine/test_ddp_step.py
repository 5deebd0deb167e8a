"""Two processes that share a batch have the loss and gradients of one that has all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("ddp_step.py")


def test_segmentation_step_of_two_processes(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(world_size), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
        )
        for rank, world_size in ((0, 1), (0, 2), (1, 2))
    ]
    one, first, second = (json.loads(process.communicate(timeout=90)[0].splitlines()[-1]) for process in started)
    assert first == second
    assert first == pytest.approx(one, rel=1e-5, abs=1e-7)
