"""The paper's tables 1 and 3 on miniature data."""

from __future__ import annotations

import csv
import gc
import json
import shlex
import shutil
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ablations import cell_record
from typer.testing import CliRunner

from pliant.cli import app
from pliant.commands.ablate import cell as cell_of_ablation
from pliant.commands.ablate import run as ablation
from pliant.commands.ablate.grid import cells, table_rows, variants
from pliant.commands.ablate.plots import draw_curves
from pliant.commands.ablate.report import REPORT, write_report
from pliant.commands.ablate.results import one_class_alone, read_cells
from pliant.commands.ablate.run import ablate, parse_duration
from pliant.engine.training import TrainingModule
from pliant.outputs import Outputs, is_free
from pliant.recipes import coco, imagenet, voc
from pliant.runs.training import build_module

TINY = (
    "backbone=timm/resnet10t",
    "weights=random",
    "max_steps=1",
    "batch_size=2",
    "short_side=48",
    "max_side=64",
    "accelerator=cpu",
    "lr=0.001",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    folder: Path = miniature.make_voc(tmp_path_factory.mktemp("data") / "voc", {"train": 3, "test": 2})
    return folder


def test_the_networks_of_the_tables() -> None:
    plain = {"deform_layers": 0, "dilation": 2}
    found = variants(voc.deeplab_deform())
    assert [each.rows[1] for each in table_rows(found, 1)] == ["0", "1", "2", "3", "6"]
    rows = ["dilation 2", "dilation 4", "dilation 6", "dilation 8", "deformable convolution"]
    assert [each.rows[3] for each in table_rows(found, 3)] == rows
    assert [each.changes for each in table_rows(found, 3)] == [
        plain,
        plain | {"dilation": 4},
        plain | {"dilation": 6},
        plain | {"dilation": 8},
        plain | {"deform_layers": 3},
    ]
    assert len(variants(voc.class_aware_rpn())) == 8
    dilated = {each.key: each for each in variants(voc.deeplab().replaced(dilation=4))}
    assert dilated["layers-3"].changes == {"deform_layers": 3, "dilation": 4}
    assert dilated["layers-0"].rows[3] == "dilation 4"
    assert [key for key in dilated if "dilation" in key] == ["dilation-2", "dilation-6", "dilation-8"]
    for recipe in (voc.rfcn(), voc.faster_rcnn_deform()):
        *_, roi, both = table_rows(variants(recipe), 3)
        assert (roi.rows[3], both.rows[3]) == ("deformable RoI pooling", "both")
        assert roi.changes == plain | {"deform_roi": True}
        assert both.changes == {"deform_layers": 3, "dilation": 2, "deform_roi": True}
        assert all(each.changes["deform_roi"] is False for each in table_rows(variants(recipe), 1))


def test_tables_of_one_class_say_so(tmp_path: Path) -> None:
    todo = cells(variants(voc.deeplab()), 1, tmp_path)

    def judge(index: int, key: str, **values: float | None) -> None:
        todo[index].record.parent.mkdir(parents=True, exist_ok=True)
        content = {"results": {"per_class": {name: {key: value} for name, value in values.items()}}}
        todo[index].record.write_text(json.dumps(content))

    assert one_class_alone(todo, voc.deeplab()) is None
    for index in (0, 1):
        judge(index, "IoU", background=0.7, leaf=0.0, absent=float("nan"), unknown=None)
    assert "background alone has IoU above 0, so these" in str(one_class_alone(todo, voc.deeplab()))
    judge(1, "IoU", background=0.7, leaf=0.1)
    assert one_class_alone(todo, voc.deeplab()) is None
    for index in (0, 1):
        judge(index, "VOC_AP50", red=0.0, green=0.0)
    assert "In every cell no class has VOC AP50 above 0" in str(one_class_alone(todo, voc.rfcn()))
    judge(0, "VOC_AP50", red=0.0)  # of a single class there is nothing else to find
    judge(1, "VOC_AP50", red=0.0)
    assert one_class_alone(todo, voc.rfcn()) is None


@pytest.mark.parametrize("recipe", [coco.fpn_faster_rcnn(), imagenet.resnet101()])
def test_other_networks_have_no_such_tables(recipe: Any) -> None:
    with pytest.raises(ValueError, match="tables compare networks of DeepLab"):
        variants(recipe)


def test_seeds_come_after_networks() -> None:
    todo = cells(variants(voc.deeplab()), 2, Path("out"))
    assert [cell.seed for cell in todo] == [0] * 8 + [1] * 8
    assert len({cell.record for cell in todo}) == len({cell.run for cell in todo}) == 16


def test_an_interrupted_ablation_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, calls = cell_of_ablation.fit, []

    def interrupted(module: Any, opened: Any, run: Any, *others: Any) -> int:
        calls.append(run.path.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        if run.path.name == "dilation-6_seed0":
            raise FloatingPointError("the loss of step 1 is not finite")
        return fit(module, opened, run, *others)

    monkeypatch.setattr(cell_of_ablation, "fit", interrupted)
    arguments = {"data": data, "assignments": TINY, "seeds": 1}
    with pytest.raises(KeyboardInterrupt):
        ablate(tmp_path / "out", **arguments)
    assert "2 of 8 cells are done" in (tmp_path / "out" / "ablation.md").read_text()
    report = ablate(tmp_path / "out", **arguments).read_text()
    assert calls == [f"layers-{n}_seed0" for n in (0, 1, 2, 2, 3, 6)] + [f"dilation-{n}_seed0" for n in (4, 6, 8)]
    assert "8 of 8 cells are done" in report
    assert "Failed: dilation 6, seed 0: the loss of step 1 is not finite." in report
    with (tmp_path / "out" / "ablation.csv").open() as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    assert rows["dilation-6"]["mIoU"] == ""
    for key, row in rows.items():
        if key != "dilation-6":
            judged = json.loads((tmp_path / "out" / "cells" / f"{key}_seed0.json").read_text())
            assert float(row["mIoU"]) == judged["results"]["mIoU"]
            assert judged["step"] == 1
            assert f"{100 * float(row['mIoU']):.1f}" in report
    for suffix in ("png", "svg"):
        assert (tmp_path / "out" / f"ablation.{suffix}").stat().st_size > 1000
    with pytest.raises(ValueError, match="seeds is 1 there and 2 here"):
        ablate(tmp_path / "out", data=data, assignments=TINY, seeds=2)


def test_the_networks_of_former_cells_are_not_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, alive = [], []

    def building(*arguments: Any, **options: Any) -> Any:
        alive.append(sum(network() is not None for network in kept))
        module = build_module(*arguments, **options)
        kept.append(weakref.ref(module.model))
        return module

    def failing(module: Any, losses: Any) -> Any:
        if len(kept) == 2:
            raise FloatingPointError("the loss of step 1 is not finite")
        return total_loss(module, losses)

    total_loss = TrainingModule.total_loss
    monkeypatch.setattr(TrainingModule, "total_loss", failing)
    monkeypatch.setattr(cell_of_ablation, "build_module", building)
    chosen = variants(voc.deeplab())
    monkeypatch.setattr(ablation, "variants", lambda recipe, only: [chosen[0], chosen[3], chosen[1]])
    gc.collect()
    gc.disable()  # which comes too late for what is as large as a network
    try:
        ablate(tmp_path / "out", data, assignments=TINY, seeds=1)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("cells/*.json")]
    assert sorted("failed" in record for record in records) == [False, False, True]


def test_a_budget_sets_the_steps(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "_trial", lambda *_: (2.0, 30.0))  # a step; all else in a cell
    monkeypatch.setattr(ablation, "run_cells", lambda *_: None)
    ablate(tmp_path / "out", data, assignments=TINY, seeds=1, budget="10m")
    steps = json.loads((tmp_path / "out" / "ablation.json").read_text())["steps"]
    assert 18 <= steps <= 20  # (0.95 * 600 - 8 * 30) / (8 * 2) = 20.6, less the time to open the data
    with pytest.raises(ValueError, match="8 networks with 2 seeds do not fit into 10m"):
        ablate(tmp_path / "other", data, assignments=TINY, seeds=2, budget="10m")


def test_a_trial_tells_the_time_of_a_step_and_the_rest(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit into 1s: 10 steps for each would take about \d+ minutes"):
        ablate(tmp_path / "out", data, assignments=TINY, seeds=1, budget="1s")
    assert is_free(tmp_path / "out")


def test_a_folder_of_other_things_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains files that Pliant did not write"):
        ablate(tmp_path, data, assignments=TINY)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("1h30m", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "0s", "1.5h", "20m1h", "-3m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 90s, 20m or 1h30m"):
        parse_duration(text)


def test_networks_can_be_chosen_and_have_curves(data: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "assignments": (*TINY, "max_steps=4"),
        "seeds": 1,
        "only": ("layers-0", "layers-3"),
        "curve": 2,
    }
    ablate(tmp_path / "out", data, **arguments)
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").iterdir()}
    assert set(records) == {"layers-0_seed0", "layers-3_seed0"}
    for record in records.values():
        assert [point["step"] for point in record["curve"]] == [2, 4]
        assert record["curve"][-1]["mIoU"] == pytest.approx(record["results"]["mIoU"], abs=1e-6)
        assert all(record[key] for key in ("machine", "commit", "date", "versions"))
    assert all("mean_offset" in point for point in records["layers-3_seed0"]["curve"])
    assert not any("mean_offset" in point for point in records["layers-0_seed0"]["curve"])

    # The records are all that is needed to continue in another place.
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "out", moved, ignore=shutil.ignore_patterns("runs", "layers-3_seed0.json"))
    ablate(moved, shutil.copytree(data, tmp_path / "data" / data.name), **arguments)
    again = json.loads((moved / "cells" / "layers-3_seed0.json").read_text())
    assert again["results"] == records["layers-3_seed0"]["results"]
    assert not (moved / "runs" / "layers-0_seed0").exists()


def test_the_command_of_a_record_trains_the_cell(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablate(tmp_path / "out", data, assignments=TINY, seeds=1, only=["dilation-6"])
    record = json.loads((tmp_path / "out" / "cells" / "dilation-6_seed0.json").read_text())
    monkeypatch.chdir(data.parent)
    words = shlex.split(record["command"])
    assert words[:2] == ["pliant", "train"]
    result = CliRunner().invoke(app, [*words[1:], "--run", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    losses = [(tmp_path / place / "train.csv").read_text() for place in ("run", "out/runs/dilation-6_seed0")]
    assert losses[0] == losses[1]


def test_the_report_is_made_from_the_files_alone(tmp_path: Path) -> None:
    keys, steps = ("layers-0", "layers-3"), (5, 10)
    values = {"layers-0": (0.50, 0.52, 0.54), "layers-3": (0.55, 0.58, 0.58)}
    asked = {"recipe": "voc.deeplab", "assignments": ["batch_size=2"], "data": "leaves", "networks": keys, "seeds": 3}
    (tmp_path / "ablation.json").write_text(json.dumps({**asked, "budget": None, "curve": 2, "steps": 10}))
    (tmp_path / "cells").mkdir()
    for key in keys:
        for seed, value in enumerate(values[key]):
            (tmp_path / "cells" / f"{key}_seed{seed}.json").write_text(json.dumps(cell_record(value, steps)))
    text = write_report(Outputs(tmp_path, REPORT)).read_text()
    assert "10 steps of 2 images for every network, 3 seeds, evaluated on test after the last step. 6 of 6" in text
    assert "| dilation 2 | 52.0 ± 2.0 | 90.0 ± 0.0 | 3 |  |  |" in text
    assert "| deformable convolution | 57.0 ± 1.7 | 90.0 ± 0.0 | 3 | +5.0 | +2.5 to +7.5 |" in text
    assert "pliant ablate --data leaves --recipe voc.deeplab --seeds 3 --curve 2 --only layers-0,layers-3" in text
    assert "- 6 cells: pliant 1.0 (1234567), torch 2.14, a processor, threads: 1, 2026-11-26" in text
    assert "curves.svg" in text
    record = cell_record(0.5, steps)
    del record["versions"]["pliant"]  # that of a cell which ran without an installation
    (tmp_path / "cells" / "layers-0_seed0.json").write_text(json.dumps(record))
    text = write_report(Outputs(tmp_path, REPORT)).read_text()
    assert "- 1 cell: pliant from its sources (1234567), torch 2.14" in text
    cells, recipe, _ = read_cells(tmp_path)
    figure = draw_curves(cells, recipe)
    assert figure is not None
    lines = {line.get_label(): line.get_xydata() for axis in figure.axes for line in axis.lines}
    assert lines["dilation 2"] == pytest.approx(np.array([[5, 26.0], [10, 52.0]]))
    assert len(figure.axes) == 1  # without offsets there is one panel


def test_unknown_networks_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network 'layers-4' to compare; networks: layers-0, layers-1"):
        ablate(tmp_path / "out", data, assignments=TINY, only=["layers-4"])
    assert is_free(tmp_path / "out")


def test_frozen_stages_leave_out_the_network_that_deforms_them() -> None:
    keys = [variant.key for variant in variants(voc.deeplab().replaced(freeze_below="conv5"))]
    assert "layers-3" in keys
    assert "layers-6" not in keys


@pytest.mark.slow
def test_several_cells_at_a_time_have_the_same_results(data: Path, tmp_path: Path) -> None:
    frozen = ("backbone=resnet50", "freeze_below=conv5", "clip=1", "max_steps=2")
    arguments: dict[str, Any] = {
        "assignments": (*TINY, *frozen),
        "seeds": 1,
        "only": ["layers-0", "layers-3"],
        "curve": 1,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ablate(tmp_path / "one", data, **arguments)
    finally:
        torch.set_num_threads(threads)
    ablate(tmp_path / "two", data, **arguments, jobs=2)
    assert any((tmp_path / "two" / "maps").rglob("*.pkl"))
    for name in ("layers-0_seed0.json", "layers-3_seed0.json"):
        one, two = (json.loads((tmp_path / place / "cells" / name).read_text()) for place in ("one", "two"))
        assert one["results"] == two["results"]
        assert one["curve"] == two["curve"]
