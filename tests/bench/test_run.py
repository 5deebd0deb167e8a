"""The benchmark from end to end, on tiny rows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import torchvision
from torch import Tensor
from typer.testing import CliRunner

from pliant import ops
from pliant.bench import peers, scaling
from pliant.bench.implementation import Implementation, InTorch, Missing
from pliant.bench.measure import FORWARD, TRAINING, Outcome, RowResult, measure
from pliant.bench.report import row_tables
from pliant.bench.rows import ConvRow, PoolRow, Tensors
from pliant.bench.run import run
from pliant.cli import app
from pliant.ops import _native

CONVOLUTION = ConvRow(1, 4, 4, 7, 6, dilation=2)
POOLING = PoolRow(4, position_sensitive=True, offset_classes=4, sampling="authors", rois=5, bins=2, height=9, width=12)
OWN = {name: peers.CONVOLUTION[name] for name in ("conv2d", "Pliant", "torchvision")}


@pytest.fixture(autouse=True)
def _no_mxnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLIANT_MXNET_PYTHON", raising=False)


def altered(change: Callable[[Tensor], Tensor]) -> peers.Column:
    def make(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
        def call(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
            return change(ops.deform_conv2d(input, offset, weight, None, 1, row.padding, row.dilation))

        return InTorch(call, tensors)

    return make


def absent(row: ConvRow, tensors: Tensors, threads: int) -> Implementation:
    raise Missing("it is on holiday")


def test_ratios_come_from_interleaved_rounds() -> None:
    """Every round the machine is in another state; implementations keep their ratio."""
    speed = {"conv2d": 1.0, "Pliant": 1.5, "torchvision": 9.0}
    state = [1.0, 3.0, 2.0]

    def timed(turns: Any, seconds: float) -> dict[str, list[float]]:
        assert list(turns) == list(speed)
        assert seconds == 5.0
        assert all(turn(2) > 0 for turn in turns.values())
        return {name: [each * cost for each in state] for name, cost in speed.items()}

    result = measure(CONVOLUTION, OWN, 1, 10.0, timed)
    assert result.base == "conv2d"
    for what in (FORWARD, TRAINING):
        found = {name: outcome.ratios[what].value for name, outcome in result.outcomes.items()}
        assert found == speed
        assert result.outcomes["Pliant"].median_seconds[what] == 3.0


def test_a_wrong_implementation_is_reported_and_not_timed() -> None:
    columns = OWN | {"broken": altered(lambda output: 1.01 * output), "nan": altered(lambda output: output * math.nan)}
    result = measure(CONVOLUTION, columns, 1, 0.0)
    assert result.wrong == ["broken", "nan"]
    broken = result.outcomes["broken"]
    assert broken.error == pytest.approx(0.01, rel=1e-3)
    assert broken.ratios == broken.seconds == {}
    assert result.outcomes["nan"].error is None
    forward, training = row_tables("Title", "row", [result], {})
    assert forward.lines[0][-2:] == training.lines[0][-2:] == ["wrong: 1.0e-02", "wrong: no number"]
    assert any(note.startswith("broken is wrong at 1, 4→4, 7×6, 3×3, 2, 1: ") for note in training.notes)


def test_a_missing_peer_is_shown_with_its_reason() -> None:
    result = measure(CONVOLUTION, OWN | {"peer": absent}, 1, 0.0)
    assert not result.wrong
    assert result.outcomes["peer"] == Outcome("missing", "it is on holiday")
    tables = row_tables("Title", "row", [result], {})
    assert [table.lines[0][-1] for table in tables] == ["-", "-"]
    assert "peer: it is on holiday." in tables[-1].notes


@pytest.mark.parametrize(
    ("module", "column"), [("onnxruntime", "ONNX Runtime"), ("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")]
)
def test_runtimes_that_are_not_installed_are_missing(module: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "onnx":
        pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Missing, match=f"^{module} is not installed"):
        peers.CONVOLUTION[column](CONVOLUTION, CONVOLUTION.tensors(), 1)


def test_mxnet_is_missing_without_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    make = peers.CONVOLUTION["MXNet"]
    tensors = CONVOLUTION.tensors()
    with pytest.raises(Missing, match="PLIANT_MXNET_PYTHON names no Python"):
        make(CONVOLUTION, tensors, 1)
    monkeypatch.setenv("PLIANT_MXNET_PYTHON", "/nowhere/python")
    with pytest.raises(Missing, match="/nowhere/python, which does not start: No such file"):
        make(CONVOLUTION, tensors, 1)
    monkeypatch.setenv("PLIANT_MXNET_PYTHON", sys.executable)
    with pytest.raises(Missing, match="No module named 'mxnet'"):
        make(CONVOLUTION, tensors, 1)


def test_without_bfloat16_instructions_its_columns_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.machine, "multiplies_bfloat16", lambda: False)
    with pytest.raises(Missing, match="no bfloat16 instructions"):
        peers.CONVOLUTION["Pliant bfloat16"](CONVOLUTION, CONVOLUTION.tensors(), 1)


def few(monkeypatch: pytest.MonkeyPatch, columns: dict[str, peers.Column]) -> None:
    monkeypatch.setattr(peers, "CONVOLUTION", columns)
    monkeypatch.setattr(sys.modules["pliant.bench.timing"], "TURN", 0.0)


def test_the_file_has_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    few(monkeypatch, OWN | {"peer": absent})
    threads = torch.get_num_threads()
    out = tmp_path / "bench.json"
    assert run(threads=1, seconds=0.0, out=out, markdown=True, convolutions=[CONVOLUTION], poolings=[POOLING])
    assert torch.get_num_threads() == threads
    found = json.loads(out.read_text())
    about = found["about"]
    assert about["threads"] == 1
    assert about["cpu"]
    assert about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert about["kernels"] == _native.current()
    assert about["date"].endswith("+00:00")
    (row,) = found["convolution"]
    assert row["name"] == CONVOLUTION.name
    assert row["outcomes"]["peer"]["reason"] == "it is on holiday"
    mine = row["outcomes"]["Pliant"]
    for what in (FORWARD, TRAINING):
        assert len(mine["seconds"][what]) == 3
        assert mine["median_seconds"][what] == sorted(mine["seconds"][what])[1]
        base = row["outcomes"]["conv2d"]["seconds"][what]
        rounds = [one / other for one, other in zip(mine["seconds"][what], base, strict=True)]
        assert mine["ratios"][what]["value"] == pytest.approx(sorted(rounds)[1])
    assert mine["error"] <= mine["tolerance"]
    (variants,) = found["variants"]
    assert variants["name"] == CONVOLUTION.name
    assert list(variants["outcomes"]) == ["float32 without a mask", "with a mask", "bfloat16", "float16"]
    assert all(len(outcome["seconds"][TRAINING]) == 3 for outcome in variants["outcomes"].values())
    assert list(found["pooling"][0]["outcomes"]) == ["reference", "Pliant", "MXNet"]
    assert found["network"] == found["memory"] == found["scaling"] == []
    shown = capsys.readouterr().out
    assert f"| {CONVOLUTION.name} | " in shown
    assert f"| {POOLING.name} | " in shown


def test_a_wrong_implementation_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, OWN | {"broken": altered(lambda output: -output)})
    monkeypatch.setattr(
        sys.modules["pliant.bench.run"].run,
        "__kwdefaults__",
        run.__kwdefaults__ | {"convolutions": [CONVOLUTION], "poolings": []},
    )
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(app, ["bench", "--seconds", "0", "--out", str(out)])
    assert done.exit_code == 1, done.output
    assert "wrong: 2.0e+00" in done.output
    assert json.loads(out.read_text())["convolution"][0]["outcomes"]["broken"]["status"] == "wrong"


def test_without_compiled_kernels_the_columns_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    few(monkeypatch, OWN)
    with _native.use("reference"):
        assert run(seconds=0.0, markdown=True, convolutions=[CONVOLUTION], poolings=[POOLING])
    shown = capsys.readouterr().out
    assert "| Pliant (reference) | torchvision |" in shown
    assert shown.count("Pliant ran its reference, in plain PyTorch: the reference was asked for") == 2
    assert 'Pliant: the reference was asked for, by use("reference").' in shown


def test_an_unwritable_file_is_refused_at_once(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "--out", str(tmp_path / "none" / "bench.json")])
    assert done.exit_code == 2
    assert "there is no folder" in done.output


def test_rows_are_chosen_by_their_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    few(monkeypatch, OWN)
    other = ConvRow(1, 4, 8, 7, 6)
    assert run(seconds=0.0, only="4->8, 7x6", markdown=True, convolutions=[CONVOLUTION, other], poolings=[POOLING])
    shown = capsys.readouterr().out
    assert other.name in shown
    assert CONVOLUTION.name not in shown
    assert POOLING.name not in shown
    done = CliRunner().invoke(app, ["bench", "--only", "7x7x7"])
    assert done.exit_code == 2
    assert "no row is called '7x7x7'" in done.output


def test_scaling_draws_lines_over_interleaved_points(tmp_path: Path) -> None:
    def timed(turns: Any, seconds: float) -> dict[str, list[float]]:
        for turn in turns.values():
            assert turn(1) > 0
        return {name: [float(1 + index)] * 3 for index, name in enumerate(turns)}

    base = ConvRow(1, 4, 4, 5, 6)
    before = torch.get_num_threads()
    found = [scaling.measure_scaling(*each, 1.0, timed) for each in scaling.points(2, base).items()]
    assert torch.get_num_threads() == before
    assert [panel.quantity for panel in found] == ["map size", "channels squared", "batch", "threads"]
    assert not any(panel.wrong for panel in found)
    first = found[0].lines[0]
    assert (first.name, first.what, first.x) == ("conv2d", FORWARD, [1, 2, 3, 4])
    assert first.median_seconds == [1.0, 3.0, 5.0, 7.0]
    scaling.draw(found, tmp_path / "scaling.png")
    picture = matplotlib.image.imread(tmp_path / "scaling.png")
    assert picture.shape[1] > 3 * picture.shape[0]
    assert picture[..., :3].std() > 0.01


def test_a_chart_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "CONVOLUTION", {**OWN, "absent": absent})
    assert run(seconds=0.0, chart=tmp_path / "peers.svg", convolutions=[CONVOLUTION], poolings=[])
    numbers = json.loads((tmp_path / "peers.json").read_text())
    assert [row["name"] for row in numbers["convolution"]] == [CONVOLUTION.name]
    drawn = (tmp_path / "peers.svg").read_text()  # letters are paths, each text a comment before them
    shown = " ".join(line.removeprefix("<!-- ") for line in map(str.strip, drawn.split("\n")) if "<!--" in line)
    for text in ("Pliant", "torchvision", "forward + backward; conv2d = 1", CONVOLUTION.name):
        assert f"{text} -->" in shown
    assert numbers["about"]["cpu"] in shown
    assert "absent" not in shown
    with pytest.raises(ValueError, match="not to be timed"):
        run(operators=False, chart=tmp_path / "none.png")


def test_networks_agree_and_are_timed_together() -> None:
    from pliant.bench.network import measure_network

    def timed(turns: Any, seconds: float) -> dict[str, list[float]]:
        return {name: [turn(1)] * 3 for name, turn in turns.items()}

    result = measure_network(1.0, (64, 96), "resnet10t", 1, timed)
    assert isinstance(result, RowResult)
    assert not result.wrong
    assert list(result.outcomes) == ["plain", "deformable", "deformable, torchvision's operator"]
    assert all(outcome.ratios[TRAINING].value > 0 for outcome in result.outcomes.values())
    assert 0 < result.outcomes["deformable, torchvision's operator"].error < 1e-3


def test_another_operator_in_the_network_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.bench import network

    def slightly_off(input: Tensor, offset: Tensor, *others: Any, border: str) -> Tensor:
        return torchvision.ops.deform_conv2d(input, 1.1 * offset, *others)

    monkeypatch.setattr(network, "_call_torchvision", slightly_off)
    result = network.measure_network(
        1.0, (64, 96), "resnet10t", 1, lambda turns, _: {name: [1.0] * 2 for name in turns}
    )
    assert result.wrong == ["deformable, torchvision's operator"]
    assert set(result.outcomes["deformable"].ratios) == {TRAINING}
