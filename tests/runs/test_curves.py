"""The page with the curves of a training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from pliant.engine.csv_log import CSVLog, read_columns
from pliant.runs.curves import curves_at_end, write_curves
from pliant.runs.folder import RunFolder
from pliant.runs.weights import write_weights

DESCRIPTION = {"recipe": "voc.rfcn", "overrides": ["lr=0.1"], "data": "/data", "fields": {"max_steps": 200}}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of 150 steps with two validations."""
    folder = RunFolder.create(tmp_path / "run", DESCRIPTION)
    log = CSVLog(folder.path)
    for step in range(1, 151):
        losses = {"loss": 1 / step, "loss_<b>": math.nan, "loss_box": 0.5 / step}
        log.log_metrics({"lr": 0.1, **losses, "mean_offset": 0.01 * step}, step)
    for step, value in ((50, 0.25), (100, 0.125)):
        log.log_metrics({"val/AP": value, "val/AP50": math.nan}, step)
    write_weights(folder.best.with_suffix(".safetensors"), nn.Linear(1, 1), {"step": 50})
    return folder


def test_the_page_has_every_curve_and_marks_the_best_step(run: RunFolder) -> None:
    write_curves(run)
    page = (run.path / "curves.html").read_text(encoding="utf-8")
    for text in ("loss_&lt;b&gt;", "mean_offset", "learning rate", ">AP50<", "150 of 200", "AP 25.0", "marks step 50"):
        assert text in page
    assert "<script" not in page
    assert 'src="http' not in page


def test_a_single_part_of_the_loss_does_not_cover_the_total(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", DESCRIPTION)
    CSVLog(run.path).log_metrics({"loss": 0.5, "loss_pixel": 0.5}, 1)
    write_curves(run)
    page = (run.path / "curves.html").read_text(encoding="utf-8")
    assert ">loss<" in page
    assert "loss_pixel" not in page


def test_the_page_is_written_after_an_interruption(run: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt), curves_at_end(run):
        raise KeyboardInterrupt
    assert (run.path / "curves.html").is_file()


def test_without_a_step_there_is_no_page_and_a_damaged_table_ends_nothing(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "train.csv").write_text("step,loss\n1,many\n")
    with curves_at_end(run):
        pass
    assert "curves cannot be written" in capsys.readouterr().err
    (run.path / "train.csv").unlink()
    with curves_at_end(run):
        pass
    assert not (run.path / "curves.html").exists()


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.1")
    columns = read_columns(path)
    assert list(columns) == ["step", "loss"]
    assert np.array_equal(columns["loss"], [0.5, 0.25])
    path.write_text("step,loss\n1")
    assert read_columns(path) == {}
    assert read_columns(tmp_path / "none.csv") == {}
