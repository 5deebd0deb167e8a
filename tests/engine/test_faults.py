"""What a training leaves behind when something breaks."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.engine import RunFolder, Schedule, SegmentationModule, callbacks, read_weights
from pliant.engine.fitting import FitSettings, fit
from pliant.engine.runs import resume_step
from pliant.engine.segmentation import collate_evaluation, collate_training


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images)}


class Pictures:
    """Four pictures; the third is not finite if it is broken."""

    def __init__(self, broken: bool) -> None:
        self.paths = [Path(f"{index}.png") for index in range(4)]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        value = torch.nan if self.broken and index == 2 else 0.1 * index
        return torch.full((3, 4, 5), value), torch.full((4, 5), index % 2)


class Data:
    validation = None
    collate_train = staticmethod(collate_training)
    collate_evaluation = staticmethod(collate_evaluation)

    def __init__(self, broken: bool) -> None:
        self.train = Pictures(broken)


def run_to(folder: Path, steps: int = 6, broken: bool = False) -> RunFolder:
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder, {"recipe": "tiny"})
    module = SegmentationModule(Network(), Schedule(max_steps=steps, lr=0.1), ["a", "b"])
    settings = FitSettings(batch_size=2, checkpoint_every=1, accelerator="cpu")
    fit(module, Data(broken), run, settings, {"recipe": "tiny"})
    return run


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
    write, calls = callbacks.write_weights, []

    def full_at_third(path: Path, *others: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            path.with_suffix(".part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "write_weights", full_at_third)
        with pytest.raises(OSError, match="No space left on device"):
            run_to(tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert resume_step(run.last) == 3
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
