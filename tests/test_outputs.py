"""No command writes over a file that Pliant did not write."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pliant.cli import app
from pliant.commands.evaluate import _is_report
from pliant.outputs import LIST, Outputs, is_free, unique_names, wrote
from pliant.recipes import voc
from pliant.recipes.base import to_fields
from pliant.runs.weights import write_weights
from pliant.tasks.task import build_model


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LIST)
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def put(outputs: Outputs, **contents: str) -> None:
    with outputs.writing(*contents) as places:
        for place, content in zip(places, contents.values(), strict=True):
            place.write_text(content)


def test_own_files_are_replaced_and_no_others(tmp_path: Path) -> None:
    put(Outputs(tmp_path / "out", ["a", "b"]), a="1", b="1")
    put(Outputs(tmp_path / "out", ["a", "b"]), a="2")
    assert state(tmp_path / "out").keys() == {"a", "b"}
    assert (tmp_path / "out" / "a").read_text() == "2"
    assert wrote(tmp_path / "out" / "a")
    (tmp_path / "out" / "a").write_text("mine")
    assert not wrote(tmp_path / "out" / "a")
    with pytest.raises(ValueError, match=r"out.a already exists and is left as it is"):
        Outputs(tmp_path / "out", ["b", "a"])
    Outputs(tmp_path / "out", ["b"])


@pytest.mark.parametrize("make", [Path.write_text, os.symlink, os.link, Path.mkdir])
def test_what_is_there_stops_it(tmp_path: Path, make: Callable[..., Any]) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    place = tmp_path / "a"
    {
        Path.write_text: lambda: place.write_text("other"),
        os.symlink: lambda: place.symlink_to(mine),
        os.link: lambda: place.hardlink_to(mine),
        Path.mkdir: place.mkdir,
    }[make]()
    before = state(tmp_path)
    with pytest.raises(ValueError, match=r"a (already exists|is a folder)"):
        Outputs.file(place)
    with pytest.raises(ValueError, match="a already exists"):
        Outputs(tmp_path, ["a"])
    assert state(tmp_path) == before
    assert not (tmp_path / LIST).exists()


def test_a_file_that_an_earlier_version_left_without_a_list_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="a already exists"):
        Outputs.file(tmp_path / "a", recognised=lambda path: path.read_text() == "older")
    known = {"recognised": lambda path: path.read_text() in ("old", "mine")}
    put(Outputs.file(tmp_path / "a", **known), a="new")
    (tmp_path / "a").write_text("mine")  # now it is on the list, and was changed
    with pytest.raises(ValueError, match="a already exists"):
        Outputs.file(tmp_path / "a", **known)


def test_a_link_to_a_file_that_pliant_wrote_is_not_followed(tmp_path: Path) -> None:
    put(Outputs(tmp_path, ["a"]), a="1")
    (tmp_path / "a").rename(tmp_path / "kept")
    (tmp_path / "a").symlink_to(tmp_path / "kept")
    with pytest.raises(ValueError, match="a already exists"):
        Outputs(tmp_path, ["a"])


def test_a_file_that_comes_meanwhile_is_left(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, ["a"])
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="a already exists"):
        put(outputs, a="1")
    assert (tmp_path / "a").read_text() == "mine"
    assert state(tmp_path).keys() == {"a"}


def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    put(Outputs(tmp_path, ["a"]), a="1")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="a is an input and would be overwritten"):
        Outputs(tmp_path, ["a"], inputs=[tmp_path / "b"])


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(OSError), Outputs(tmp_path / "out", ["a"]).writing("a") as (place,):
        place.write_text("half")
        raise OSError("the disk is full")
    assert is_free(tmp_path / "out")


def test_places_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file"):
        Outputs(tmp_path / "file", ["a"])
    with pytest.raises(NotADirectoryError, match="file is a file"):
        Outputs(tmp_path / "file" / "below", ["a"])
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        Outputs.file(tmp_path / "none" / "a")
    with pytest.raises(ValueError, match="too long"):
        Outputs(tmp_path, ["é" * 128])
    (tmp_path / LIST).write_text("my own notes")
    with pytest.raises(ValueError, match="is not Pliant's list"):
        Outputs(tmp_path, ["a"])

    def refuse(dir: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/tmp1234")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}/new'"):
        Outputs(tmp_path / "new", ["a"])


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    Outputs(tmp_path, ["a"], own=True).claim()
    Outputs(tmp_path, ["a"], own=True)
    (tmp_path / LIST).unlink()
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="contains files that Pliant did not write"):
        Outputs(tmp_path, ["a"], own=True)


def test_a_list_that_was_cut_off(tmp_path: Path) -> None:
    put(Outputs(tmp_path, ["a", "b"]), a="1", b="1")
    listed = tmp_path / LIST
    listed.write_bytes(listed.read_bytes()[:-9])
    assert wrote(tmp_path / "a")
    with pytest.raises(ValueError, match="b already exists"):
        Outputs(tmp_path, ["a", "b"])
    put(Outputs(tmp_path, ["a"]), a="2")
    assert wrote(tmp_path / "a")


def test_names_differ_with_every_ending_and_in_any_case() -> None:
    files = [Path(name) for name in ("a.jpg", "b/A.png", "c/a.mask.jpg", "a-2.jpg")]
    assert list(unique_names(files, (".png", ".mask.png")).values()) == ["a", "A-2", "a.mask-2", "a-2-2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained segmenter that says what a trained one does."""
    tiny = {"backbone": "timm/resnet10t", "weights": None, "frozen": False, "deform_layers": 1}
    recipe = dataclasses.replace(voc.deeplab_deform(), **tiny, short_side=32, max_side=48, accelerator="cpu")
    path = tmp_path_factory.mktemp("weights") / "s.safetensors"
    description = {
        "recipe": "tiny",
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": ("background", "red"),
        "splits": {"train": "train", "validation": None, "test": "test"},
        "step": 0,
    }
    write_weights(path, build_model(recipe, ("background", "red"), pretrained=False), description)
    return path


def pliant_cli(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.new("RGB", (48, 32), (40 * index, 90, 20)).save(folder / name)
    return folder


def test_predict_into_the_folder_of_the_images(weights: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", "mine.png", "photo.jpg")
    before = state(folder)
    assert "mine.png is an input" in pliant_cli("predict", weights, folder, "--out", folder, code=2)
    assert state(folder) == before
    (folder / "mine.png").unlink()
    pliant_cli("predict", weights, folder, "--out", folder)
    drawn = state(folder)
    assert drawn.keys() == {"photo.jpg", "photo.png", "photo.mask.png"}
    output = pliant_cli("predict", weights, folder, "--out", folder)
    assert "ignored 2 pictures that Pliant drew" in output
    assert state(folder) == drawn
    (folder / "photo.jpg").unlink()
    assert "there are no other images" in pliant_cli("predict", weights, folder, "--out", tmp_path / "new", code=2)
    # Given by its own path it is an image as any other.
    pliant_cli("predict", weights, folder / "photo.png", "--out", tmp_path / "new")
    assert "photo.png is an input" in pliant_cli("predict", weights, folder / "photo.png", "--out", folder, code=2)


def test_predict_where_other_files_are(weights: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", "a.jpg", "b.jpg")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.mask.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    before = state(tmp_path)
    output = pliant_cli("predict", weights, folder, "--out", out, code=2)
    assert "b.mask.png already exists and is left as it is" in output
    assert state(tmp_path) == before
    (out / "b.mask.png").unlink()
    pliant_cli("predict", weights, folder, "--out", out)
    assert (out / "notes.txt").read_text() == "mine"


def test_every_out_leaves_what_is_there(
    weights: Path, tmp_path: Path, miniature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = miniature.make_voc(tmp_path / "data", {"train": 1, "test": 1}, classes=("red", "green"))
    image = data / "JPEGImages" / "scene_1.jpg"
    there = pictures(tmp_path / "there", "scene_1.sampling.png")
    for name in ("a.json", "a.onnx", "a.safetensors", "a.png", "look.html", "results.json", "ablation.json"):
        (there / name).write_text("{}")
    source = tmp_path / "a.params"
    source.write_bytes(b"nothing")
    before = state(tmp_path)
    for arguments in (
        ("look", weights, image, "--out", there),
        ("eval", weights, "--data", data, "--out", there / "a.json"),
        ("eval", weights, "--data", data, "--out", there),
        ("eval", weights, "--data", data, "--out", weights),
        ("export", weights, there / "a.onnx"),
        ("import-weights", source, there / "a.safetensors"),
        ("import-weights", source, source),
        ("demo", "--out", there),
        ("demo", "--out", there / "a.json"),
        ("ablate", "--data", data, "--out", there),
        ("bench", "--no-operators", "--out", there / "a.json"),
        ("bench", "--no-operators", "--scaling", there / "a.png"),
        ("bench", "--only", "38x63", "--chart", there / "a.png"),
        ("train", "voc.deeplab", "--data", data, "--run", there),
    ):
        pliant_cli(*arguments, code=2)
        assert state(tmp_path) == before, arguments


def test_eval_on_other_data_has_a_report_of_its_own(weights: Path, tmp_path: Path, miniature: Any) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(weights.read_bytes())
    made = [miniature.make_voc(tmp_path / place / "set", {"test": 1}) for place in ("one", "two", "three")]
    for data in (*made, made[1]):
        assert "Written to" in pliant_cli("eval", mine, "--data", data)
    names = ("eval-test.json", "eval-test-set.json", "eval-test-set-2.json")
    found = {path.name: json.loads(path.read_text())["data"] for path in tmp_path.glob("eval*.json")}
    assert found == dict(zip(names, map(str, made), strict=True))


def test_eval_knows_its_reports_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "eval-test.json"
    report = {"weights": "w", "recipe": "voc.rfcn", "split": "test", "procedure": {}, "results": {}}
    for content in (json.dumps(report), "[]", "{}", "no JSON"):
        path.write_text(content)
        assert _is_report(path) == (content == json.dumps(report))
    assert not _is_report(tmp_path)


def test_eval_on_data_that_does_not_fit(weights: Path, tmp_path: Path, miniature: Any) -> None:
    data = miniature.make_voc(tmp_path / "set", {"mine": 1})
    output = pliant_cli("eval", weights, "--data", data, code=2)
    assert "splits there: mine. Name one with --split NAME" in output
    assert "--set" not in output
    for mask in (data / "SegmentationClass").iterdir():
        Image.new("L", (miniature.WIDTH, miniature.HEIGHT), 255).save(mask)
    before = state(weights.parent)
    output = pliant_cli("eval", weights, "--data", data, "--split", "mine", code=2)
    assert "nothing of the classes that the network knows: background, red" in output
    assert state(weights.parent) == before
