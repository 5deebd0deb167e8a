"""Checkpoints hold no weights twice, and a run that ends between two of their files goes on as if it had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine.segmenter import Data, Network, run_to

from pliant.engine import Schedule, SegmentationModule, callbacks
from pliant.engine.fitting import FitSettings, fit
from pliant.runs import checkpoints
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.weights import read_weights


class Validated(Data):
    """Data that is validated on, too."""

    def __init__(self) -> None:
        super().__init__(broken=False)
        self.validation = self.train


class Killed(BaseException):
    """Ends a training on the spot, as far as files are concerned."""


class Module(SegmentationModule):
    """Keeps the learning rate that the optimizer has in each step."""

    rates: ClassVar[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


def train(folder: Path, steps: int = 6, *, full: bool = False, **schedule: Any) -> RunFolder:
    run = RunFolder(folder) if folder.exists() else RunFolder.create(folder, {"recipe": "tiny"})
    module = Module(Network(), Schedule(max_steps=steps, lr=0.1, **schedule), ["a", "b"])
    settings = FitSettings(batch_size=2, checkpoint_every=1, validate_every=2, accelerator="cpu", full_checkpoints=full)
    fit(module, Validated(), run, settings, {"recipe": "tiny"}, watch=lambda step: None)
    return run


def assert_same(one: RunFolder, other: RunFolder) -> None:
    for name in ("train.csv", "val.csv"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    for name in ("last.safetensors", "best.safetensors"):
        (state, said), (expected, told) = (read_weights(run.checkpoints / name) for run in (one, other))
        assert said == told
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_no_weights_are_stored_twice(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "best.safetensors",
        "last.ckpt",
        "last.safetensors",
    ]
    weights = run.last.with_suffix(".safetensors")
    assert weights.samefile(run.best.with_suffix(".safetensors"))  # the last step is the best
    assert weights.stat().st_size > 200_000 > 50_000 > run.last.stat().st_size
    train(run.path, steps=4)
    assert read_weights(weights)[1]["step"] == 4
    assert read_weights(run.best.with_suffix(".safetensors"))[1]["step"] in (2, 4)


def test_the_full_form_is_one_setting(tmp_path: Path) -> None:
    full = train(tmp_path / "full", steps=4, full=True, decay_at=())
    for checkpoint in (full.last, full.best):
        assert "model.conv.weight" in torch.load(checkpoint, weights_only=True)["state_dict"]
    # A checkpoint of that form, which version 0.1 wrote too, goes on in the short form.
    full.last.with_suffix(".safetensors").unlink()
    assert resume_step(full.last) == 4
    train(full.path, decay_at=())
    assert_same(full, train(tmp_path / "whole", decay_at=()))
    assert not torch.load(full.last, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("place", "name", "kept"),
    [
        (checkpoints, "stage", 1),
        (checkpoints, "share", 1),
        (checkpoints, "write_torch", 1),
        (checkpoints, "accept", 2),
        (callbacks.Checkpoints, "on_validation_end", 1),
    ],
)
def test_a_run_that_ends_between_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, kept: int
) -> None:
    """The second step is the first that is validated, so its weights are the best."""
    whole = train(tmp_path / "whole")
    original, run = getattr(place, name), RunFolder(tmp_path / "run")

    def ends(*arguments: Any, **options: Any) -> Any:
        done = run.path / "train.csv"
        if len(done.read_text().splitlines()) == 3:  # the header, and two steps
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, ends)
        with pytest.raises(Killed):
            train(run.path)
    assert resume_step(run.last) == kept
    train(run.path)
    assert_same(run, whole)
    assert not list(run.checkpoints.glob(".*"))


def test_weights_of_another_step_are_not_taken(tmp_path: Path) -> None:
    run, other = run_to(tmp_path / "run", steps=3), run_to(tmp_path / "other", steps=2)
    weights = run.last.with_suffix(".safetensors")
    other.last.with_suffix(".safetensors").replace(weights)
    with pytest.raises(ValueError, match=r"last\.ckpt belongs to the weights of step 3, and .* has those of step 2"):
        run_to(run.path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"belongs to the weights of step 3, and .*last\.safetensors is missing"):
        run_to(run.path)


def test_a_longer_run_is_what_it_would_have_been(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=4, decay_at=())
    assert_same(train(tmp_path / "run", steps=8, decay_at=()), train(tmp_path / "whole", steps=8, decay_at=()))


def test_a_changed_schedule_holds_from_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate that the checkpoint has for the next step is that of the earlier schedule."""
    monkeypatch.setattr(Module, "rates", [])
    run = train(tmp_path / "run", steps=4, decay_at=(0.75,))
    assert Module.rates == pytest.approx([0.1, 0.1, 0.1, 0.01])
    train(run.path, steps=8, decay_at=(0.75,), decay=0.5)
    assert Module.rates[4:] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    rows = [line.split(",") for line in (run.path / "train.csv").read_text().splitlines()]
    assert [float(row[rows[0].index("lr")]) for row in rows[1:]] == pytest.approx(Module.rates)
