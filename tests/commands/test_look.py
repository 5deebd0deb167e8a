"""What `pliant look` writes, with untrained networks on miniature data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pliant.cli import app
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool
from pliant.recipes import imagenet, voc
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.weights import write_weights
from pliant.tasks.task import build_model

TINY: dict[str, Any] = {
    "backbone": "timm/resnet10t",
    "deform_layers": 2,
    "short_side": 48,
    "max_side": 64,
    "anchor_scales": (1, 2),
    "bins": 3,
}


def weights(path: Path, recipe: Recipe, classes: tuple[str, ...], **changes: Any) -> Path:
    """Weights of a recipe whose offset branches are not at zero."""
    known = {field.name for field in dataclasses.fields(recipe)}
    recipe = dataclasses.replace(recipe, **({name: value for name, value in TINY.items() if name in known} | changes))
    model = build_model(recipe, classes, pretrained=False)
    for module in model.modules():
        if isinstance(module, DeformConv2d | DeformPSRoIPool):
            nn.init.normal_(module.offset_conv.bias, std=0.5)
        if isinstance(module, DeformRoIPool):
            nn.init.normal_(module.offset_fc.bias, std=0.5)
    description = {
        "recipe": "tiny",
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": classes,
        "splits": {"train": "train", "validation": None, "test": "test"},
        "step": 7,
    }
    write_weights(path, model, description)
    return path


@pytest.fixture(scope="module")
def data(miniature: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.make_voc(tmp_path_factory.mktemp("data") / "voc", {"train": 1, "test": 3})


def run(code: int, *arguments: Any) -> str:
    result = CliRunner().invoke(app, ["look", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def page_data(path: Path) -> dict[str, Any]:
    text = path.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def test_a_detector(data: Path, tmp_path: Path) -> None:
    source = weights(tmp_path / "rfcn.safetensors", voc.rfcn_deform(), ("green", "red"), score_threshold=0.0)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    image = data / "JPEGImages" / "scene_1.jpg"
    output = run(1, source, image, broken, "--threshold", 0, "--data", data)
    assert "broken.jpg cannot be read" in output
    out = tmp_path / "look"
    pictures = [
        f"{name}.{form}"
        for name in ("scene_1.sampling", "scene_1.parts", "effective_dilation")
        for form in ("png", "pdf", "svg")
    ]
    written = {path.name for path in out.iterdir()}
    assert written == {*pictures, ".pliant-files", "look.html", "complexity.json", "effective_dilation.json"}
    assert (out / "scene_1.sampling.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "scene_1.parts.pdf").read_bytes().startswith(b"%PDF")
    shown = page_data(out / "look.html")
    assert shown["title"] == "tiny after 7 steps"
    (only,) = shown["images"]
    assert (only["width"], only["height"]) == (64, 48)
    assert [layer["name"] for layer in only["layers"]] == [
        "backbone.body.layer4.0.conv2",
        "backbone.body.layer4.0.conv1",
    ]
    assert 1 <= len(only["detections"]) <= 50
    scores, boxes = only["pools"]
    assert scores["classes"] == ["background", "green", "red"]
    assert scores["parts"]["shape"] == [len(only["detections"]), 3, 3, 3, 4]
    assert boxes["classes"] == ["all"]
    assert [table["title"] for table in shown["tables"]] == ["What it costs", "Effective dilation"]
    dilation = json.loads((out / "effective_dilation.json").read_text())
    assert dilation["images"] == 3
    for layer in dilation["layers"].values():
        assert layer["small"]["number"] > 0
        assert layer["large"]["number"] == 0
        assert layer["small"]["std"] < 1e-5  # constant offsets
        assert layer["small"]["mean"] == pytest.approx(layer["background"]["mean"])
    cost = json.loads((out / "complexity.json").read_text())
    assert cost["deformable"]["parameters"] > cost["plain"]["parameters"]
    assert cost["deformable"]["multiply_adds"] > cost["plain"]["multiply_adds"]


def test_a_segmenter(data: Path, tmp_path: Path) -> None:
    source = weights(tmp_path / "deeplab.safetensors", voc.deeplab_deform(), ("background", "red", "green"))
    large = tmp_path / "large.png"
    Image.open(data / "JPEGImages" / "scene_1.jpg").resize((160, 120)).save(large)
    run(0, source, large, "--out", tmp_path / "out", "--no-cost")
    (only,) = page_data(tmp_path / "out" / "look.html")["images"]
    assert (only["width"], only["height"]) == (64, 48)  # the network's, over a picture of 160 x 120
    assert only["overlay"].startswith("data:image/png")
    assert only["detections"] == []
    assert only["pools"] == []
    assert {path.suffix for path in (tmp_path / "out").glob("[!.]*")} == {".png", ".pdf", ".svg", ".html"}


def test_a_classifier(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(imagenet.resnet101(), deform_layers=1)
    source = weights(
        tmp_path / "classifier.safetensors", recipe, ("green", "red"), deform_layers=1, crop=40, max_side=90
    )
    run(0, source, data / "JPEGImages" / "scene_1.jpg", "--out", tmp_path / "out", "--no-cost")
    (only,) = page_data(tmp_path / "out" / "look.html")["images"]
    assert (only["width"], only["height"], len(only["layers"])) == (40, 40, 1)


def test_what_cannot_be_looked_at(data: Path, tmp_path: Path) -> None:
    image = data / "JPEGImages" / "scene_1.jpg"
    plain = weights(tmp_path / "plain.safetensors", voc.deeplab(), ("background", "red"), deform_layers=0)
    assert "nothing in this network is deformable" in run(2, plain, image)
    source = weights(tmp_path / "deeplab.safetensors", voc.deeplab_deform(), ("background", "red"))
    assert "effective dilation of detectors" in run(2, source, image, "--data", data)
    assert "--split names a split of --data" in run(2, source, image, "--split", "test")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    assert "no image can be read" in run(2, source, broken)
    assert not (tmp_path / "look").exists()
