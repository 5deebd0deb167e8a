"""Run folders, whole files, and CSV that survives an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.engine.csv_log import CSVLog
from pliant.runs.files import replacing, write_json
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.weights import read_weights, write_weights


def test_new_run_says_what_it_is(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "b", {"recipe": "x", "fields": {"lr": 0.1}})
    assert RunFolder.open(run.path).description() == {"recipe": "x", "fields": {"lr": 0.1}}
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"recipe": "first"})
    with pytest.raises(ValueError, match="--resume"):
        RunFolder.create(run.path, {"recipe": "second"})
    assert run.description() == {"recipe": "first"}


def test_empty_folder_is_free_and_foreign_one_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        RunFolder.open(tmp_path)
    RunFolder.create(tmp_path, {})


def test_best_weights_come_before_the_last(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(ValueError, match="no weights yet"):
        run.weights()
    for name in ("last", "best"):
        write_weights(run.checkpoints / f"{name}.safetensors", nn.Linear(2, 2), {})
        assert run.weights().stem == name


def test_damaged_description_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    run.description_path.write_text("{half")
    with pytest.raises(ValueError, match=r"recipe\.json cannot be read"):
        run.description()


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_json_writes_nan_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": {"c": math.nan}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}


def test_weights_come_back_with_their_description(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.append(model[0])  # a shared weight
    write_weights(tmp_path / "w.safetensors", model, {"classes": ["a", "ä"]})
    state, description = read_weights(tmp_path / "w.safetensors")
    assert description == {"classes": ["a", "ä"]}
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_weights(tmp_path / "none.safetensors")
    whole = tmp_path / "w.safetensors"
    write_weights(whole, nn.Linear(3, 2), {})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_weights(cut)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="does not say which network"):
        read_weights(tmp_path / "foreign.safetensors")


def test_damaged_checkpoint_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    assert resume_step(tmp_path / "none.ckpt") == 0
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 7, "state": torch.ones(100)}, path)
    assert resume_step(path) == 7
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        resume_step(path)


def test_csv_rows_after_the_resumed_step_are_taken_out(tmp_path: Path) -> None:
    log = CSVLog(tmp_path)
    for step in (1, 2, 3):
        log.log_metrics({"loss": 0.1 * step, "lr": 1e-3}, step)
    log.log_metrics({"val/AP": math.nan}, 2)
    with (tmp_path / "train.csv").open("a") as file:
        file.write("4,0.")  # cut off
    resumed = CSVLog(tmp_path, resume_step=2)
    assert (tmp_path / "train.csv").read_text() == f"step,loss,lr\n1,0.1,0.001\n2,{0.2!r},0.001\n"
    resumed.log_metrics({"lr": 1e-3, "loss": 1 / 3}, 3)
    rows = (tmp_path / "train.csv").read_text().splitlines()
    assert rows[-1] == f"3,{1 / 3!r},0.001"
    assert (tmp_path / "val.csv").read_text() == "step,AP\n2,nan\n"
    with pytest.raises(ValueError, match="columns loss, lr"):
        resumed.log_metrics({"other": 1.0}, 4)


def test_csv_of_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    CSVLog(tmp_path).log_metrics({"loss": 1.0}, 1)
    CSVLog(tmp_path).log_metrics({"loss": 2.0}, 1)
    assert (tmp_path / "train.csv").read_text() == "step,loss\n1,2.0\n"
