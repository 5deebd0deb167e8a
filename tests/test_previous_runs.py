"""Runs, weights and exported files of version 0.1 still open, and give the results that they gave then.

`previous_runs.tar.xz` holds a detector, a segmenter and a classifier that version 0.1 trained on the data sets of
`miniature.py`, their ONNX files, and what it found with them. Most weights are zero, so that they compress.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from pliant.cli import app
from pliant.tasks.task import find_task

HERE = Path(__file__).parent
KINDS = ("detector", "segmenter", "classifier")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(HERE / "previous_runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    miniature.make_voc(folder / "voc", {"train": 6, "val": 2, "test": 3})
    miniature.make_folders(folder / "folders", {"train": 8, "val": 6})
    return folder


def data(place: Path, kind: str) -> tuple[Path, Path]:
    """The data of a run, and the image that it was used on."""
    if kind == "classifier":
        return place / "folders", place / "folders" / "val" / "red" / "8.jpg"
    return place / "voc", place / "voc" / "JPEGImages" / "scene_8.jpg"


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def close(value: Any, expected: Any) -> bool:
    """Whether nested results are the same, up to rounding."""
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(close(value[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(close, value, expected))
    return bool(value == (pytest.approx(expected, rel=1e-3, abs=1e-5) if isinstance(expected, float) else expected))


def count_networks(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[Any]:
    """A list that grows with every network that the task of a run builds."""
    task = type(find_task({"detector": "detection", "segmenter": "segmentation"}.get(kind, "classification")))
    built: list[Any] = []
    build = task.build
    monkeypatch.setattr(task, "build", lambda *given, **options: (built.append(given), build(*given, **options))[1])
    return built


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", ".onnx"])
def test_eval_and_predict(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str) -> None:
    """`eval` builds the network once, and for an ONNX file not at all."""
    if suffix:
        pytest.importorskip("onnxruntime")
    source, (folder, image) = place / f"{kind}{suffix}", data(place, kind)
    expected = json.loads((place / "expected.json").read_text())[kind]
    built = count_networks(monkeypatch, kind)
    run("eval", source, "--data", folder, "--out", tmp_path / "report.json")
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    if kind == "detector":
        for of_class in results["per_class"].values():  # which that version did not report
            del of_class["AP50"], of_class["AP75"]
    assert close(results, expected["results"]), results
    assert len(built) == (0 if suffix else 1)
    if suffix:
        refused = CliRunner().invoke(app, ["predict", str(source), str(image), "--out", "x", "--device", "cuda"])
        assert "runs on the CPU, got --device cuda" in refused.output
    run("predict", source, image, "--out", tmp_path / "pictures")
    assert (tmp_path / "pictures" / f"{image.stem}.png").is_file()
    if kind == "segmenter":
        assert (tmp_path / "pictures" / f"{image.stem}.mask.png").is_file()
        return
    found = json.loads((tmp_path / "pictures" / "predictions.json").read_text())[: len(expected["predictions"])]
    assert all(each.pop("file_name") == str(image) for each in found)
    assert close(found, expected["predictions"]), found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_export(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    image = data(place, "classifier")[1]
    assert "yes" in run("export", place / "classifier", tmp_path / "out.onnx", "--check", image)


def test_resume(place: Path) -> None:
    before = (place / "classifier" / "train.csv").read_text()
    assert "Continued after step 30" in run("train", "--resume", place / "classifier", "--data", place / "folders")
    after = (place / "classifier" / "train.csv").read_text()
    assert after.startswith(before)
    assert [line.split(",")[0] for line in after.splitlines()[-2:]] == ["31", "32"]
