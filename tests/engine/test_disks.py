"""Disks that are full or cannot be written to: one error that says so, and what was saved before stays whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine.segmenter import run_to
from torch import nn

from pliant.runs.files import write_torch
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.weights import read_weights, write_weights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 8 MB, where the system lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        while file.write(bytes(2**10)) == 2**10:
            pass


def assert_goes_on_from(folder: Path, step: int, whole: Path) -> None:
    run = RunFolder.open(folder)
    assert resume_step(run.last) == step
    assert read_weights(run.weights())[1]["step"] <= step
    assert not list(folder.rglob("*.part"))
    run_to(folder)
    run_to(whole)
    assert (folder / "train.csv").read_text() == (whole / "train.csv").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a file's size is as on Linux")
def test_a_checkpoint_that_is_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step: int) -> None:
        if step == 3:  # to half of what a checkpoint has
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(OSError, match="File too large"):
            run_to(tmp_path / "run", watch=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_goes_on_from(tmp_path / "run", 3, tmp_path / "whole")


def test_a_disk_that_fills_up(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"

    def fill_up(step: int) -> None:
        if step == 3:
            with pytest.raises(OSError, match="No space left"):
                fill(ballast)

    with pytest.raises(OSError, match="No space left on device"):
        run_to(run, watch=fill_up)
    printed = capsys.readouterr().err
    assert f"Stopped by an error. Continue from the checkpoint of step 3 with: pliant train --resume {run}" in printed
    with pytest.raises(OSError, match="No space left on device"):  # still full
        run_to(run)
    ballast.unlink()
    assert_goes_on_from(run, 3, tmp_path / "whole")


def test_a_disk_that_can_only_be_read(small_disk: Path) -> None:
    run = run_to(small_disk / "run", steps=2)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for folder in (run.path, small_disk / "new"):
        with pytest.raises(OSError, match=f"Read-only file system: '{folder}"):
            run_to(folder)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("write", [write_torch, lambda path, model: write_weights(path, model, {})])
def test_files_that_do_not_fit_are_errors_of_the_system(small_disk: Path, write: Callable[..., Any]) -> None:
    (small_disk / "x").write_bytes(b"before")
    with pytest.raises(OSError, match="No space left on device"):
        write(small_disk / "x", nn.Linear(3000, 1000))  # 12 MB
    assert [(path.name, path.read_bytes()) for path in small_disk.iterdir()] == [("x", b"before")]
