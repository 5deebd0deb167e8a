"""Two processes on the CPU train and judge as one does, and a dead one ends the run, which then resumes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pliant import launch
from pliant.cli import app
from pliant.commands.evaluate import evaluate
from pliant.commands.train import train
from pliant.launch import Launch
from pliant.runs.folder import RunFolder

TINY = (
    "backbone=timm/resnet10t",
    "weights=random",
    "batch_size=4",
    "short_side=48",
    "max_side=64",
    "accelerator=cpu",
    "train_split=train",
    "test_split=test",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    # Of two processes that judge five images, one has more than the other.
    folder: Path = miniature.make_voc(tmp_path_factory.mktemp("voc") / "data", {"train": 6, "val": 5, "test": 5})
    path = folder / "SegmentationClass" / "scene_0.png"  # so that their shares differ in the pixels that count
    with Image.open(path) as mask:
        mask.paste(255, (0, 0, mask.width, mask.height // 2))
        mask.save(path)
    return folder


def options(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def pliant(*arguments: Any, devices: int = 2, code: int = 0) -> str:
    """A command in several processes."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--devices", str(devices)])
    assert result.exit_code == code, result.output
    return result.output


def rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_same_logs(one: RunFolder, other: RunFolder, tolerance: float = 1e-4) -> None:
    for name in ("train.csv", "val.csv"):
        want, got = rows(one.path / name), rows(other.path / name)
        assert len(want) == len(got)
        for expected, found in zip(want, got, strict=True):
            assert found == pytest.approx(expected, rel=tolerance, abs=1e-6)


def same_results(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_results(one[key], other[key]) for key in one)
    return bool(one == other) or {one != one or one is None, other != other or other is None} == {True}


class KillSecond(threading.Thread):
    """Ends the second process of a run with SIGKILL once so many steps are logged."""

    def __init__(self, run: Path, steps: int) -> None:
        super().__init__(daemon=True)
        self.run_path = run
        self.steps = steps

    def run(self) -> None:
        log = self.run_path / "train.csv"
        while not log.is_file() or len(log.read_text().splitlines()) <= self.steps:
            time.sleep(0.02)
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if str(self.run_path).encode() in command and b"\0RANK=1\0" in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the process in /proc, as Linux has it")
def test_a_detector_trains_as_in_one_process_though_one_dies(data: Path, tmp_path: Path) -> None:
    settings = (*TINY, "anchor_scales=1,2", "max_steps=12", "checkpoint_every=3", "validate_every=4", "lr=0.001")
    killer = KillSecond(tmp_path / "shared", 4)
    killer.start()
    output = pliant(
        "train", "voc.rfcn_deform", "--data", data, "--run", tmp_path / "shared", *options(settings), code=2
    )
    assert "process 1 of 2 was ended by SIGKILL" in output
    assert f"continue with: pliant train --resume {tmp_path / 'shared'}" in output
    killer.join()
    whole = train("voc.rfcn_deform", data, assignments=settings, run=tmp_path / "whole")
    pliant("train", "--resume", tmp_path / "shared")
    assert_same_logs(whole, RunFolder(tmp_path / "shared"))


@pytest.mark.slow
def test_torchrun_trains_a_segmenter_and_judges_it(data: Path, tmp_path: Path, miniature: ModuleType) -> None:
    settings = (*TINY, "max_steps=4", "validate_every=2", "lr=0.001", "crop=32,40")
    shared = RunFolder(tmp_path / "shared")
    command = ["train", "voc.deeplab_deform", "--data", str(data), "--run", str(shared.path), *options(settings)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    done = subprocess.run(
        [*torchrun, "--rdzv-endpoint", "localhost:0", "-m", "--", "pliant", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Trained. Weights:") == 1
    whole = train("voc.deeplab_deform", data, assignments=settings, run=tmp_path / "whole")
    assert_same_logs(whole, shared)

    (data / "JPEGImages" / "scene_13.jpg").write_bytes(b"gone")  # the third of five, so the first process finds it
    pliant("eval", shared.path)
    together = json.loads((shared.path / "eval-test.json").read_text())
    alone = evaluate(shared.path, out=tmp_path / "alone.json")
    assert together["images"] == alone["images"] == 4
    assert together["skipped"] == alone["skipped"]
    assert same_results(together["results"], alone["results"])


def test_what_cannot_be_shared_is_refused_first(data: Path, tmp_path: Path) -> None:
    arguments = ["train", "voc.deeplab", "--data", data, "--run", tmp_path / "run", *options(TINY)]
    output = pliant(*arguments, devices=3, code=2)
    assert "batch_size (4) must be divisible by the number of devices (3)" in output
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="several processes are started by the command line"):
        train("voc.deeplab", data, assignments=TINY, run=tmp_path / "run", launch=Launch(2))
    assert not (tmp_path / "run").exists()


def test_the_processes_run_the_command_as_it_was_given(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(launch, "launch", lambda command, processes: given.append((*command, str(processes))))
    arguments = ("--debug", "train", "voc.deeplab", "--data", str(data), *options(TINY), "--strict", "--devices=2")
    assert CliRunner().invoke(app, list(arguments)).exit_code == 0
    assert given == [(*arguments, "2")]


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"NCCL connects two GPUs, and this machine has {torch.cuda.device_count()}"
)
@pytest.mark.parametrize("frozen", ["true", "false"], ids=["fixed norms", "synchronised norms"])
def test_two_gpus_train_as_one(data: Path, tmp_path: Path, frozen: str) -> None:
    """The norms that are trained see the whole batch, so that the losses are those of one GPU."""
    settings = (*TINY, "accelerator=gpu", "max_steps=4", "validate_every=2", "lr=0.001", "crop=32,40")
    settings += (f"frozen={frozen}",)
    pliant("train", "voc.deeplab_deform", "--data", data, "--run", tmp_path / "shared", *options(settings))
    whole = train("voc.deeplab_deform", data, assignments=settings, run=tmp_path / "whole")
    assert_same_logs(whole, RunFolder(tmp_path / "shared"), tolerance=1e-3)
