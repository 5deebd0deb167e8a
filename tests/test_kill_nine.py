"""Trainings that are killed at random moments end as if they had not been."""

from __future__ import annotations

import multiprocessing
import runpy
from pathlib import Path

import aside
import pytest

PROGRAM = Path(__file__).parent.parent / "tools" / "kill_nine.py"


def kill_three_times() -> None:
    runpy.run_path(str(PROGRAM))["main"](kills=3, seed=0, recipe="voc.deeplab_deform", workers=0)


@pytest.mark.slow
@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a system with SIGKILL")
def test_three_kills(tmp_path: Path) -> None:
    code = aside.ending(aside.start(tmp_path / "printed", kill_three_times))
    printed = (tmp_path / "printed").read_text()
    assert code == 0, printed[-3000:]
    assert "3 kills, 3 runs end as the uninterrupted one" in printed
