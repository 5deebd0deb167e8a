"""Trainings that are killed at random moments end as if they had not been."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "tools" / "kill_nine.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked on this system")
def test_three_kills() -> None:
    command = [sys.executable, str(PROGRAM), "--kills", "3", "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3 kills, 3 runs end as the uninterrupted one" in done.stdout
