"""The command line from end to end, on miniature data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import pliant.cli.application
import pliant.console
from pliant.cli import app

TINY = (
    "backbone=timm/resnet10t",
    "frozen=false",
    "deform_layers=1",
    "max_steps=4",
    "batch_size=2",
    "checkpoint_every=2",
    "validate_every=2",
    "short_side=48",
    "max_side=64",
    "accelerator=cpu",
    "lr=0.01",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    root = tmp_path_factory.mktemp("data") / "voc"
    miniature.make_voc(root, {"train": 5, "val": 2, "test": 2})
    # A second box, of no height, in the first image.
    annotation = root / "Annotations" / "scene_0.xml"
    bad = "<object><name>red</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>20</xmax><ymax>9</ymax></bndbox></object>"
    annotation.write_text(annotation.read_text().replace("</annotation>", f"{bad}</annotation>"))
    return root


def pliant_cli(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def changes(*more: str) -> list[str]:
    return [part for text in (*TINY, *more) for part in ("--set", text)]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Result]:
    run = tmp_path_factory.mktemp("runs") / "detector"
    arguments = ["train", "voc.faster_rcnn_deform", "--data", data, "--run", run, *changes("score_threshold=0.0")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pliant.console, "_SHORTEST_WAIT", 0.01)
        result = pliant_cli(*arguments)
    assert result.exit_code == 0, result.output
    return run, result


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "segmenter"
    result = pliant_cli("train", "voc.deeplab_deform", "--data", data, "--run", run, *changes())
    assert result.exit_code == 0, result.output
    return run


def test_version_and_help() -> None:
    assert pliant_cli("--version").output.strip() == f"pliant {pliant.__version__}"
    output = pliant_cli("--help").output
    assert all(command in output for command in ("train", "eval", "predict", "demo"))


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys; import pliant.cli; "
        "print([n for n in ('torch', 'torchvision', 'lightning', 'timm', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"


def test_run_folder_is_complete(detector: tuple[Path, Result], data: Path) -> None:
    run, result = detector
    description = json.loads((run / "recipe.json").read_text())
    assert description["recipe"] == "voc.faster_rcnn_deform"
    assert description["fields"]["max_steps"] == 4
    assert description["fields"]["deform_roi"] is True
    assert description["classes"] == ["green", "red"]
    assert description["splits"] == {"train": "train", "validation": "val", "test": "test"}
    assert description["data"] == str(data.resolve())
    lines = (run / "train.csv").read_text().splitlines()
    assert lines[0].startswith("step,lr,loss,")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    rows = [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]
    assert rows[0]["lr"] == pytest.approx(0.01 * 2 / 8)
    assert rows[3]["lr"] == pytest.approx(0.001 * 2 / 8)
    # The offsets start at zero and are learned.
    assert rows[0]["mean_offset"] == 0.0
    assert rows[3]["mean_offset"] > 0.0
    assert len((run / "val.csv").read_text().splitlines()) == 3
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"last.ckpt", "last.safetensors", "best.safetensors"}
    assert list((run / "tensorboard").glob("events*"))
    problems = (run / "problems.txt").read_text().splitlines()
    assert len(problems) == 1
    assert "scene_0.xml" in problems[0]
    assert "1 x zero-area box" in result.output


def test_a_training_tells_how_far_it_is(detector: tuple[Path, Result]) -> None:
    _, result = detector
    assert re.search(
        r"^training 4/4, \d:\d\d, loss \d+\.\d{4} \(classifier \d+\.\d{3}, .*\)$", result.stderr, re.MULTILINE
    )
    assert re.search(r"^validating 2/2, \d:\d\d$", result.stderr, re.MULTILINE)
    assert re.search(r"^step 4  validation AP \d", result.stderr, re.MULTILINE)
    assert "/-2" not in result.output
    assert result.stdout == ""


def test_second_run_is_refused(detector: tuple[Path, Result], data: Path) -> None:
    run, _ = detector
    before = (run / "recipe.json").read_bytes()
    result = pliant_cli("train", "voc.faster_rcnn", "--data", data, "--run", run, *changes())
    assert result.exit_code == 2
    assert "--resume" in result.output
    assert (run / "recipe.json").read_bytes() == before


def test_finished_run_says_so(detector: tuple[Path, Result]) -> None:
    run, _ = detector
    before = (run / "train.csv").read_text()
    result = pliant_cli("train", "--resume", run)
    assert result.exit_code == 0, result.output
    assert "4 of 4 steps are done" in result.output
    assert (run / "train.csv").read_text() == before


def test_interrupted_run_is_resumed(
    segmenter: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant.engine.callbacks import StepLog

    original: Callable[..., None] = StepLog.on_train_batch_end

    def fail(self: StepLog, trainer: Any, *others: Any) -> None:
        original(self, trainer, *others)
        if trainer.global_step == 3:
            raise OSError("the disk went away")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "on_train_batch_end", fail)
        result = pliant_cli("train", "voc.deeplab_deform", "--data", data, "--run", run, *changes())
    assert result.exit_code == 2
    assert "the disk went away" in result.output
    result = pliant_cli("train", "--resume", run)
    assert result.exit_code == 0, result.output
    assert "Continued after step 2" in result.output
    for name in ("train.csv", "val.csv"):
        assert (run / name).read_text() == (segmenter / name).read_text()


def test_detector_is_judged(detector: tuple[Path, Result]) -> None:
    run, _ = detector
    result = pliant_cli("eval", run)
    assert result.exit_code == 0, result.output
    report = json.loads((run / "eval-test.json").read_text())
    assert report["images"] == 2
    assert report["split"] == "test"
    numbers = {"AP", "AP50", "AP75", "VOC_AP50", "VOC_AP50_11pt", "VOC_AP70", "VOC_AP70_11pt"}
    assert numbers < set(report["results"])
    assert all(0 <= report["results"][name] <= 1 for name in numbers)
    assert set(report["results"]["per_class"]) == {"green", "red"}
    assert "green" in result.output


def other_data(data: Path, place: Path, names: dict[str, str]) -> Path:
    """The same images with other names of classes."""
    shutil.copytree(data, place)
    for file in (place / "Annotations").iterdir():
        text = file.read_text()
        for old, new in names.items():
            text = text.replace(f"<name>{old}<", f"<name>{new}<")
        file.write_text(text)
    return place


def test_other_data_has_a_report_of_its_own(detector: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    run, _ = detector
    pliant_cli("eval", run, "--split", "val", "--voc-results")
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and not path.name.startswith(".")}
    other = other_data(data, tmp_path / "other", {"green": "blue"})
    result = pliant_cli("eval", run, "--data", other, "--split", "val", "--voc-results")
    assert result.exit_code == 0, result.output
    assert json.loads((run / "eval-val-other.json").read_text())["data"] == str(other)
    assert "unknown class" in result.output
    assert (run / "eval-val-other" / "comp4_det_test_red.txt").is_file()
    assert all(path.read_bytes() == content for path, content in kept.items())
    foreign = other_data(data, tmp_path / "foreign", {"green": "blue", "red": "pink"})
    result = pliant_cli("eval", run, "--data", foreign, "--split", "val")
    assert result.exit_code == 2
    assert "nothing of the classes that the network knows: green, red. The classes there: blue, pink" in result.output
    assert not list(run.glob("eval-val-foreign*"))


def test_a_checkpoint_stands_for_its_weights(segmenter: Path, data: Path, tmp_path: Path) -> None:
    image = data / "JPEGImages" / "scene_8.jpg"
    for name in ("last.ckpt", "last.safetensors"):
        result = pliant_cli("predict", segmenter / "checkpoints" / name, image, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    ckpt, weights = (tmp_path / name / "scene_8.mask.png" for name in ("last.ckpt", "last.safetensors"))
    assert ckpt.read_bytes() == weights.read_bytes()
    lone = tmp_path / "lone.ckpt"
    lone.write_bytes(b"")
    assert "lone.safetensors, which is missing" in pliant_cli("predict", lone, image, "--out", tmp_path / "x").output


def test_home_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/the/home")
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["train", "voc.deeplab", "--data=~/there"],
        ["train", "--resume", "~/there"],
        ["check", "voc.deeplab", "--data", "~/there"],
        ["eval", "~/there"],
        ["predict", "run", "~/there", "--out", "x"],
        ["look", "~/there", "~/there"],
        ["export", "run", "~/there/a.onnx"],
        ["import-weights", "a.params", "~/there/a.safetensors"],
        ["ablate", "--data", "~/there"],
        ["bench", "--out", "~/there/a.json"],
    ):
        assert "/the/home/there" in pliant_cli(*arguments).output, arguments
    given = {}
    registered = len(app.registered_commands)
    try:
        pliant.cli.application.command("probe")(lambda assignments: given.update(assignments=assignments))
        app.registered_commands[-1].callback(assignments=["weights=~/w.pth", "lr=1", "~"])
    finally:
        del app.registered_commands[registered:]
    assert given["assignments"] == ["weights=/the/home/w.pth", "lr=1", "~"]


def test_weights_alone_suffice(segmenter: Path, data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    shutil.copy(segmenter / "checkpoints" / "best.safetensors", weights)
    result = pliant_cli("eval", weights, "--data", data, "--split", "val", "--out", tmp_path / "val.json")
    assert result.exit_code == 0, result.output
    judged = json.loads((tmp_path / "val.json").read_text())["results"]
    assert set(judged["per_class"]) == {"background", "class_1", "class_2"}
    best = max(float(line.split(",")[1]) for line in (segmenter / "val.csv").read_text().splitlines()[1:])
    assert judged["mIoU"] == pytest.approx(best, abs=1e-6)


def test_detections_as_pictures_and_json(detector: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    run, _ = detector
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not a picture")
    images = [data / "JPEGImages" / f"scene_{index}.jpg" for index in (7, 8)]
    out = tmp_path / "out"
    result = pliant_cli("predict", run, images[0], broken, images[1], "--out", out, "--threshold", 0.0)
    assert result.exit_code == 1  # one image failed
    assert "broken.jpg cannot be read" in result.output
    assert {path.name for path in out.glob("[!.]*")} == {"predictions.json", "scene_7.png", "scene_8.png"}
    with Image.open(out / "scene_7.png") as picture:
        assert picture.size[0] == 6 * 64  # a small image is enlarged, so that labels can be read
        assert picture.size[1] >= 6 * 48
    detections = json.loads((out / "predictions.json").read_text())
    assert detections
    assert {item["image_id"] for item in detections} <= {0, 2}
    for item in detections:
        x, y, width, height = item["bbox"]
        assert 0 <= x <= x + width <= 64
        assert 0 <= y <= y + height <= 48
        assert item["category"] == ("green", "red")[item["category_id"] - 1]
        assert 0 <= item["score"] <= 1


def test_masks_as_pictures(segmenter: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = pliant_cli("predict", segmenter, data / "JPEGImages" / "scene_8.jpg", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"1 picture in {out}" in result.output
    with Image.open(out / "scene_8.mask.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (64, 48)
        assert mask.getextrema()[1] <= 2
    with Image.open(out / "scene_8.png") as picture:
        assert (picture.mode, picture.size[0]) == ("RGB", 6 * 64)
        assert picture.size[1] > 6 * 48  # with the legend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "voc.nothing", "--data", "."], "voc.faster_rcnn_deform"),
        (["train", "voc.deeplab", "--data", ".", "--set", "steps=3"], "max_steps (int)"),
        (
            ["train", "voc.deeplab", "--data", ".", "--set", "max_steps=few"],
            "max_steps must be a valid integer",
        ),
        (["train", "voc.deeplab"], "--data PATH"),
        (["train"], "name a recipe"),
        (["train", "voc.deeplab", "--data", "/no/such/folder"], "/no/such/folder: there is no such folder"),
        (["train", "voc.deeplab", "--resume", "x"], "leave out RECIPE"),
        (["train", "--resume", "/no/such/run"], "/no/such/run is not a run folder"),
        (["eval", "/no/such/run"], "/no/such/run: there is no such run folder"),
        (["predict", "/no/such/run", "/no/image.jpg", "--out", "x"], "/no/image.jpg: there is no such image"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pliant_cli(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_strict_stops_at_the_first_problem(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = pliant_cli("train", "voc.faster_rcnn", "--data", data, "--run", run, "--strict", *changes())
    assert result.exit_code == 2
    assert "scene_0.xml" in result.output
    assert not run.exists()


def test_weights_of_another_network_are_refused(detector: tuple[Path, Result], tmp_path: Path) -> None:
    from pliant.runs.weights import read_weights, write_weights

    run, _ = detector
    _, description = read_weights(run / "checkpoints" / "last.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    write_weights(foreign, torch.nn.Linear(2, 2), description)
    result = pliant_cli("predict", foreign, run / "none.jpg", "--out", tmp_path / "out")
    assert "there is no such image" in result.output
    picture = tmp_path / "x.png"
    Image.new("RGB", (64, 48)).save(picture)
    result = pliant_cli("predict", foreign, picture, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "does not fit voc.faster_rcnn_deform" in result.output


@pytest.mark.parametrize(
    "given", [("layers-0,dilation-6",), ("layers-0", "--only", " dilation-6"), ("layers-0,,dilation-6,",)]
)
def test_a_list_may_be_given_in_several_options(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pliant.commands.ablate.run.ablate", lambda *_, **options: asked.update(options))
    assert pliant_cli("ablate", "--data", tmp_path, "--only", *given).exit_code == 0
    assert asked["only"] == ["layers-0", "dilation-6"]
