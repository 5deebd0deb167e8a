"""`pliant export`, and what takes the file in place of the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pliant.cli import app
from pliant.recipes import imagenet, voc
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.exported import load_exported
from pliant.runs.weights import write_weights
from pliant.tasks.detection import compare_detections
from pliant.tasks.task import Agreement, build_model

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
TINY: dict[str, Any] = {"backbone": "timm/test_resnet", "weights": None, "accelerator": "cpu"}


def weights(path: Path, recipe: Recipe, classes: tuple[str, ...], **changes: Any) -> Path:
    """Random weights of a recipe, large enough that results differ from place to place."""
    torch.manual_seed(2)
    recipe = dataclasses.replace(recipe, **TINY, **changes)
    model = build_model(recipe, classes, pretrained=False)
    for name, parameter in model.named_parameters():
        if "offset" in name or (not name.startswith("backbone") and parameter.dim() > 1):
            nn.init.normal_(parameter, std=0.03)
    description = {
        "recipe": "tiny",
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": classes,
        "splits": {"train": "train", "validation": None, "test": "test"},
        "step": 0,
    }
    write_weights(path, model, description)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two images of different sizes."""
    paths = []
    for name, size in (("wide.png", (90, 60)), ("tall.png", (50, 80))):
        noise = torch.rand(3, size[1] // 5, size[0] // 5)
        large = nn.functional.interpolate(noise[None], size=size[::-1], mode="bilinear")[0]
        Image.fromarray((255 * large).byte().permute(1, 2, 0).numpy()).save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_a_detector(tmp_path: Path, pictures: list[Path]) -> None:
    source = weights(
        tmp_path / "tiny.safetensors", voc.faster_rcnn_deform(), ("cat", "dog"),
        short_side=64, max_side=96, anchor_scales=(1, 2), score_threshold=0.2, deform_layers=2,
    )  # fmt: skip
    checks = [option for path in pictures for option in ("--check", path)]
    text = run("export", source, tmp_path / "tiny.onnx", *checks)
    assert "yes" in text
    assert load_exported(tmp_path / "tiny.onnx").classes == ("cat", "dog")
    found = {}
    for name in ("tiny.safetensors", "tiny.onnx"):
        run("predict", tmp_path / name, *pictures, "--out", tmp_path / f"from {name}")
        found[name] = json.loads((tmp_path / f"from {name}" / "predictions.json").read_text())
    ours, theirs = found.values()
    assert len(ours) > 10
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one["file_name"] == other["file_name"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    assert "itself" in run("predict", tmp_path / "tiny.onnx", *pictures, "--out", tmp_path, "--flip", code=2)


def test_a_segmenter_and_openvino(tmp_path: Path, pictures: list[Path]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed; the extra bench has it")
    source = weights(
        tmp_path / "tiny.safetensors", voc.deeplab_deform(), ("background", "cat", "dog"), short_side=64, max_side=96,
    )  # fmt: skip
    text = run("export", source, tmp_path / "tiny.onnx", "--opset", 22, "--openvino", "--check", pictures[0])
    assert text.count("yes") == 2
    for name in ("tiny.safetensors", "tiny.onnx"):
        run("predict", tmp_path / name, *pictures, "--out", tmp_path / f"from {name}")
    for picture in pictures:
        ours, theirs = (
            Image.open(tmp_path / f"from {name}" / f"{picture.stem}.mask.png")
            for name in ("tiny.safetensors", "tiny.onnx")
        )
        assert ours.tobytes() == theirs.tobytes()


def test_a_classifier_compared_on_noise(tmp_path: Path) -> None:
    sizes = {"short_side": 64, "max_side": 96, "crop": 64}
    source = weights(tmp_path / "tiny.safetensors", imagenet.resnet101(), ("cat", "dog"), deform_layers=2, **sizes)
    assert "noise" in run("export", source, tmp_path / "tiny.onnx")


def test_mistakes_are_named(tmp_path: Path) -> None:
    assert "must end in .onnx" in run("export", tmp_path / "tiny.safetensors", tmp_path / "model.pt", code=2)
    assert "no such run folder" in run("export", tmp_path / "none", tmp_path / "model.onnx", code=2)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    (tmp_path / "image.png").write_bytes(b"nothing")
    assert "cannot run" in run("predict", tmp_path / "model.onnx", tmp_path, "--out", tmp_path, code=2)


def test_agreement_needs_the_same_label_place_and_number() -> None:
    def detections(*lines: tuple[float, int, float]) -> dict[str, torch.Tensor]:
        return {
            "boxes": torch.tensor([[left, 0.0, left + 20, 20] for left, _, _ in lines]).view(-1, 4),
            "labels": torch.tensor([label for _, label, _ in lines], dtype=torch.int64),
            "scores": torch.tensor([score for *_, score in lines]),
        }

    same = compare_detections
    two = detections((0, 1, 0.9), (40, 2, 0.8))
    assert same(two, two) == Agreement(True, 0.0, 2, 0.0)
    assert same(two, detections((40, 2, 0.8), (0, 1, 0.9), (80, 1, 0.01))).same
    assert not same(two, detections((0, 1, 0.9), (40, 1, 0.8))).same
    assert not same(two, detections((0, 1, 0.9))).same
    assert not same(detections((0, 1, 0.9)), two).same
    assert not same(two, detections((0, 1, 0.9), (44, 2, 0.8))).same
    assert same(detections(), detections()).same
