"""Names are shown as they are: brackets, emoji codes and control characters in names of folders, files and classes."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import pliant
from pliant.cli import app
from pliant.commands import export
from pliant.console import Console, Progress, Table, printable, styled
from pliant.tasks.task import Agreement

CLASSES = ("cell [/x] $_$:smile:", "\x1b[31mred\n[on]\t")
IDS = (17, 5)
FOLDER = "runs [/new] [on]:smile: \x1b[31m\n\t$"
FILE = "a [on]:smile: [bold]\x1b[31m\n\t$"
TINY = (
    "backbone=timm/resnet10t",
    "frozen=false",
    "weights=none",
    "deform_layers=1",
    "max_steps=1",
    "batch_size=1",
    "short_side=32",
    "max_side=48",
    "anchor_scales=1,2",
    "score_threshold=0",
    "accelerator=cpu",
)


def run(*arguments: Any, code: int = 0) -> Result:
    """Run a command, and see that what it prints steers no terminal."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert all(char.isprintable() or char == "\n" for char in result.output), repr(result.output)
    return result


def changes(*more: str) -> list[str]:
    return [part for text in (*TINY, *more) for part in ("--set", text)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    """Data and a run whose names are what a terminal would take for more than text."""
    place = tmp_path_factory.mktemp("names") / FOLDER
    miniature.make_coco(place / "data", {"train": 2, "val": 2})
    for file in (place / "data" / "annotations").iterdir():
        content = json.loads(file.read_text())
        for category, name, key in zip(content["categories"], CLASSES, IDS, strict=True):
            category.update(id=key, name=name)
        for annotation in content["annotations"]:
            annotation["category_id"] = IDS[annotation["category_id"] - 1]
        content["annotations"].append({**content["annotations"][0], "id": 77, "bbox": [9, 9, 0, 5]})
        for image in content["images"]:
            old = place / "data" / file.stem.removeprefix("instances_") / image["file_name"]
            image["file_name"] = f"{FILE}{old.name}"
            old.rename(old.with_name(image["file_name"]))
        file.write_text(json.dumps(content))
    return place


@pytest.fixture(scope="module")
def trained(place: Path) -> Result:
    return run("train", "coco.faster_rcnn_deform", "--data", place / "data", "--run", place / "run", *changes())


def test_train_and_resume(place: Path, trained: Result) -> None:
    assert f"run folder  {printable(str(place / 'run'))}\n" in trained.output
    assert all(printable(name) in trained.output for name in CLASSES)
    assert f"Weights: {printable(str(place / 'run'))}" in trained.output
    assert json.loads((place / "run" / "recipe.json").read_text())["classes"] == list(reversed(CLASSES))
    problems = (place / "run" / "problems.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in problems] == ["train", "validation"]
    assert "This run is finished" in run("train", "--resume", place / "run").output
    again = run("train", "coco.faster_rcnn", "--data", place / "data", "--run", place / "run", *changes(), code=2)
    assert "runs [/new] [on]:smile: \\x1b[31m $/run already holds something" in again.output


def test_check(place: Path) -> None:
    output = run("check", "coco.faster_rcnn", "--data", place / "data", *changes(), "--deep").output
    assert all(printable(name) in output for name in CLASSES)
    assert "zero-area box" in output
    nothing = place / "nothing [/x]"
    assert "nothing [/x]: there is no such folder" in run("check", "coco.rfcn", "--data", nothing, code=2).output


@pytest.mark.usefixtures("trained")
def test_eval(place: Path) -> None:
    output = run("eval", place / "run").output
    assert all(printable(name) in output for name in CLASSES)
    assert set(json.loads((place / "run" / "eval-val.json").read_text())["results"]["per_class"]) == set(CLASSES)


@pytest.mark.usefixtures("trained")
def test_predict_and_look(place: Path, tmp_path: Path) -> None:
    broken = place / f"broken{FILE}.png"
    broken.write_bytes(b"no picture")
    out = tmp_path / f"out{FOLDER}"
    output = run("predict", place / "run", place / "data" / "val", broken, "--out", out, code=1).output
    assert f"{printable(broken.name)} cannot be read" in output
    assert f"2 pictures in {printable(str(out))}" in output
    found = json.loads((out / "predictions.json").read_text())
    assert {(item["category_id"], item["category"]) for item in found} == set(zip(IDS, CLASSES, strict=True))
    output = run("look", place / "run", place / "data" / "val", broken, "--no-cost", "--threshold", 0, code=1).output
    assert f"{printable(broken.name)} cannot be read" in output
    assert (place / "run" / "look" / "look.html").is_file()


def test_export(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = next((place / "data" / "val").iterdir())
    trained = SimpleNamespace(name=CLASSES[1])
    monkeypatch.setattr(export, "write_exported", lambda source, out, opset: (out.touch(), trained)[1])
    monkeypatch.setattr(export, "load_exported", lambda out, name: None)
    monkeypatch.setattr(export, "compare", lambda *_: {str(image): Agreement(False, 0.0, 3, 0.0)})
    output = run("export", place / "run", place / "[x].onnx", "--check", image, code=1).output
    assert f"[x].onnx: {printable(CLASSES[1])}" in output
    assert printable(str(image)) in output


def test_errors_name_what_came(tmp_path: Path) -> None:
    name = "no [/such] :smile: [thing]\x1b"
    shown = printable(name)
    missing = tmp_path / name
    for arguments in (
        ("train", name, "--data", tmp_path),
        ("train", "voc.deeplab", "--data", missing),
        ("train", "voc.deeplab", "--data", tmp_path, "--set", f"{name}=3"),
        ("train", "voc.deeplab", "--data", tmp_path, "--set", f"max_steps={name}"),
        ("train", "--resume", missing),
        ("eval", missing),
        ("predict", missing, missing, "--out", tmp_path / "out"),
        ("look", missing, missing),
        ("export", missing, tmp_path / "a.onnx"),
        ("import-weights", missing, tmp_path / "a.safetensors"),
        ("ablate", "--data", missing, "--out", tmp_path / "out"),
        ("bench", "--only", name),
    ):
        assert shown in run(*arguments, code=2).output, arguments
    there = tmp_path / name.replace("/", "")
    there.write_text("mine")
    for arguments in (("demo", "--out", there), ("ablate", "--data", tmp_path, "--out", there)):
        assert printable(there.name) in run(*arguments, code=2).output, arguments


def test_a_training_that_cannot_start_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs" / "new [/x]"
    arguments = ["train", "coco.faster_rcnn", "--data", place / "data", "--run", target, *changes()]
    output = run(*arguments, "--set", "accelerator=tpu", code=2).output
    assert "error:" in output
    assert "--resume" not in output
    assert not list(tmp_path.iterdir())
    target.mkdir(parents=True)
    run(*arguments, "--set", "accelerator=tpu", code=2)
    assert not list(target.iterdir())


def test_text_is_text_wherever_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold]a[/x] :smile: \x1b[0m\r\n\t\u202e"
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    table.add_row(styled(name, "red"))
    console = Console()
    console.print(table)
    console.print(name, styled(name, "bold"))
    console.print("two", "lines", sep="\n", style="yellow")
    console.error(name)
    shown = capsys.readouterr().out
    assert shown.count("[bold]a[/x] :smile: \\x1b[0m\\r\\n\\t\\u202e") == 7
    assert "two\nlines\n" in shown
    with Progress() as progress, progress.task(name, 2) as task:
        task.update(1, name)
        with console.capture() as captured:
            console.print(progress._shown())
    assert captured.get().count(printable(name)) == 2


def test_one_module_prints() -> None:
    """No other module of the package uses rich, whose functions read markup."""
    for path in Path(pliant.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            uses = any(name.partition(".")[0] == "rich" for name in names)
            assert path.name == "console.py" or not uses, f"{path}:{getattr(node, 'lineno', 0)}"
