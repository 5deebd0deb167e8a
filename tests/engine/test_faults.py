"""What a training leaves behind when something breaks."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.segmenter import Network, run_to

from pliant.engine import callbacks
from pliant.runs import checkpoints
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.weights import read_weights


def test_a_loss_that_is_not_finite_leaves_its_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FloatingPointError, match=r"of step [12] is not finite") as error:
        run_to(tmp_path / "run", broken=True)
    folder = tmp_path / "run" / "not_finite"
    kept = torch.load(folder / "batch.pt", weights_only=True)
    assert kept["culprits"] == ["2.png"]
    assert len(kept["samples"]) == 2
    assert f"of step {kept['step']} is" in str(error.value)
    images, masks = kept["batch"]
    assert images.shape == (2, 3, 4, 5)
    assert masks.shape == (2, 4, 5)
    printed = capsys.readouterr().err
    assert "alone not finite: 2.png" in printed
    assert f"pliant train --resume {tmp_path / 'run'}" in printed
    # With these weights, the loss of this batch is what it was.
    state, description = read_weights(folder / "weights.safetensors")
    assert description["step"] == kept["step"] - 1
    again = Network()
    again.load_state_dict(state)
    assert again(images)["out"][kept["samples"].index("2.png")].isnan().all()


def test_a_full_disk_leaves_the_last_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = checkpoints.write_weights, []

    def full_at_third(path: Path, *others: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.with_suffix(".part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_weights", full_at_third)
        with pytest.raises(OSError, match="No space left on device"):
            run_to(tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert resume_step(run.last) == 2
    assert read_weights(run.weights())[1]["step"] == 2
    run_to(tmp_path / "run")
    run_to(tmp_path / "whole")
    logs = [(tmp_path / name / "train.csv").read_text() for name in ("run", "whole")]
    assert logs[0] == logs[1]


def test_a_second_run_into_a_folder_is_refused(tmp_path: Path) -> None:
    run = run_to(tmp_path / "run", steps=1)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="already holds something and is left as it is"):
        RunFolder.create(run.path, {"recipe": "other"})
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_to(tmp_path / "file" / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_a_run_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    run = run_to(tmp_path / "run", steps=2)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    hold = f"import fcntl; f = open({str(run.path / '.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(ValueError, match=r"another process trains into .*run; wait for it, or stop it"):
            run_to(run.path, steps=4)
    finally:
        other.kill()  # which lets go of the folder
        other.communicate()
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    run_to(run.path, steps=4)
    assert resume_step(run.last) == 4


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run = run_to(tmp_path / "run", steps=2)
    left = [run.checkpoints / ".last.ckpt.abc.part", run.path / ".train.csv.abc.part"]
    for path in left:
        path.write_bytes(b"half")
    run_to(run.path, steps=3)
    assert not [path for path in left if path.exists()]


def test_a_batch_that_cannot_be_kept_does_not_hide_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "run", {"recipe": "tiny"})
    (run.path / "not_finite").write_text("in the way")
    with pytest.raises(FloatingPointError, match="is not finite"):
        run_to(run.path, broken=True)
    printed = capsys.readouterr().err
    assert "alone not finite: 2.png). Batch and weights could not be kept: " in printed
    assert f"pliant train --resume {run.path}" in printed


def test_a_second_interrupt_stops_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    interruption = callbacks.Interruption()
    assert not interruption.asked()
    interruption._ask()
    assert interruption.asked()
    assert "Stopping after this step; once more stops at once." in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        interruption._ask()
