"""Others' files become ours: from the authors' names and numbers, written by the table of their networks, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from importers.authors_file import authors_arrays, scramble
from importers.mxnet_file import params_bytes
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pliant.cli import app
from pliant.commands.evaluate import evaluate
from pliant.commands.import_weights import import_weights
from pliant.commands.predict import predict
from pliant.data import VOC_CLASSES
from pliant.models import deeplab, faster_rcnn, rfcn
from pliant.runs.trained import load_trained

MEAN = [123.15 / 255, 115.90 / 255, 103.06 / 255]
THEIRS: dict[str, Any] = {"border": "authors", "framing": "authors", "image_mean": MEAN}
DETECTOR: dict[str, Any] = {**THEIRS, "sampling": "authors"}
COCO: dict[str, Any] = {**DETECTOR, "anchor_scales": (4, 8, 16, 32), "detections_per_image": 100}

# What is built, and how: four of the authors' files.
NETWORKS: dict[str, tuple[str, Callable[..., nn.Module], dict[str, Any]]] = {
    "rfcn_dcn_coco": ("coco.rfcn_deform_authors", rfcn, {**COCO, "num_classes": 81, "offset_groups": 4}),
    "rcnn_dcn_coco": ("coco.faster_rcnn_deform_authors", faster_rcnn, {**COCO, "num_classes": 81, "offset_groups": 4}),
    "rcnn_coco": (
        "coco.faster_rcnn_authors",
        faster_rcnn,
        {**COCO, "num_classes": 81, "deform_layers": 0, "deform_roi": False},
    ),
    "deeplab_dcn_cityscapes": (
        "cityscapes.deeplab_deform_authors",
        deeplab,
        {**THEIRS, "num_classes": 19, "offset_dilation": 1},
    ),
}


def write(path: Path, arrays: dict[str, np.ndarray], layout: str = "V1") -> Path:
    path.write_bytes(params_bytes(arrays, layout))
    return path


@pytest.fixture(scope="module")
def demonstration() -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The smallest of them: VOC's R-FCN with deformable 3 x 3 pooling."""
    model = scramble(rfcn(21, **DETECTOR, deform_layers=0, bins=3))
    return model, authors_arrays(model, bins=3)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each != "rfcn_dcn_coco")) for each in NETWORKS]
)
def test_the_authors_network_is_recognised_and_keeps_its_numbers(tmp_path: Path, name: str) -> None:
    recipe, build, options = NETWORKS[name]
    model = scramble(build(**options))
    source = write(tmp_path / f"{name}-0000.params", authors_arrays(model))
    done = import_weights(source, tmp_path / "out.safetensors")
    assert done.name == recipe
    again = load_trained(tmp_path / "out.safetensors").model()
    assert again.config == model.config
    theirs, ours = model.state_dict(), again.state_dict()
    assert set(theirs) == set(ours)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)
    x = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        torch.testing.assert_close(again.backbone(x), model.backbone(x))
        if build is deeplab:
            torch.testing.assert_close(again(torch.sigmoid(x))["out"], model(torch.sigmoid(x))["out"])


def test_predict_and_eval_take_the_file(demonstration: Any, tmp_path: Path, miniature: Any) -> None:
    source = write(tmp_path / "demo.params", demonstration[1], "V0")
    out = tmp_path / "out.safetensors"
    result = CliRunner().invoke(app, ["import-weights", str(source), str(out), *small()])
    assert result.exit_code == 0, result.output
    assert "voc.rfcn_deform_authors, 20 classes" in result.output
    Image.fromarray(np.full((50, 64, 3), 90, np.uint8)).save(tmp_path / "image.png")
    assert load_trained(out).recipe.bins == 3
    done = predict(out, [tmp_path / "image.png"], tmp_path / "pictures")
    assert done.pictures
    assert {found["category"] for found in done.records} <= set(VOC_CLASSES)
    root = miniature.make_voc(tmp_path / "voc", {"test": 1})
    for annotation in (root / "Annotations").iterdir():
        annotation.write_text(annotation.read_text().replace("red", "cat").replace("green", "dog"))
    assert evaluate(out, root, split="test")["images"] == 1


def small() -> list[str]:
    return [part for text in ("short_side=48", "max_side=64", "score_threshold=0.0") for part in ("--set", text)]


@pytest.mark.parametrize(("denormalized", "divided"), [(None, False), (True, True)])
def test_boxes_without_test_names(demonstration: Any, tmp_path: Path, denormalized: bool | None, divided: bool) -> None:
    model, _ = demonstration
    source = write(tmp_path / "a.params", authors_arrays(model, bins=3, tested=False))
    import_weights(source, tmp_path / "out.safetensors", denormalized=denormalized)
    name = "roi_heads.box_roi_pool.boxes.weight"
    found, own = load_trained(tmp_path / "out.safetensors").state[name], model.state_dict()[name]
    stds = torch.tensor([0.1] * 18 + [0.2] * 18).repeat(2).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, own / stds if divided else own)


def without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.pop(name)  # type: ignore[return-value]


def with_array(name: str, *shape: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.update({name: np.zeros(shape, "float32")})


def test_all_that_does_not_fit_is_listed_and_nothing_written(demonstration: Any, tmp_path: Path) -> None:
    arrays = dict(demonstration[1])
    for change in (
        without("arg:res2a_branch1_weight"),
        without("aux:bn5c_branch2c_moving_var"),
        without("arg:rpn_conv_3x3_bias"),
        with_array("arg:fc1000_bias", 1000),
        with_array("arg:rpn_cls_score_bias", 9),
        with_array("arg:conv_new_1_weight", 8, 2048, 1, 1),
    ):
        change(arrays)
    with pytest.raises(ValueError, match=r"a.params does not fit voc.rfcn_deform_authors with 20 classes: ") as raised:
        import_weights(write(tmp_path / "a.params", arrays), tmp_path / "out.safetensors")
    assert sorted(str(raised.value).split(": ", 1)[1].split("; ")) == [
        "arg:conv_new_1_weight has shape [8, 2048, 1, 1], expected [1024, 2048, 1, 1]",
        "arg:rpn_cls_score_bias has shape [9], expected [18]",
        "missing arg:res2a_branch1_weight [256, 64, 1, 1]",
        "missing arg:rpn_conv_3x3_bias [512]",
        "missing aux:bn5c_branch2c_moving_var [2048]",
        "unknown arg:fc1000_bias [1000]",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.params"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_array("arg:rpn_cls_score_weight", 10, 512, 1, 1), "expected 9 or 12 anchors of a cell, .* got 5"),
        (
            with_array("arg:rfcn_bbox_weight_test", 84 * 9, 1024, 1, 1),
            "which all classes share; .* arg:rfcn_bbox_weight 756",
        ),
        (with_array("arg:res5c_branch2b_offset_weight", 20, 512, 3, 3), "branch2b_offset_weight 20"),
        (without("arg:rfcn_bbox_bias_test"), "weight and bias .* under _test, .* got arg:rfcn_bbox_weight_test"),
        (with_array("arg:rfcn_cls_weight", 9 * 41, 1024, 1, 1), "has 40 classes without the background; name them"),
        (without("arg:rfcn_cls_weight"), "holds none of the authors' networks"),
    ],
)
def test_files_of_other_networks_leave_nothing(
    demonstration: Any, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    heads = {name: value for name, value in demonstration[1].items() if "branch2c" not in name}
    arrays = {name: value[:, :1] if "branch" in name and value.ndim == 4 else value for name, value in heads.items()}
    change(arrays)
    source = write(tmp_path / "a.params", arrays)
    with pytest.raises(ValueError, match=message):
        import_weights(source, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.params"]


def test_what_is_there_already_is_left(tmp_path: Path) -> None:
    source = write(tmp_path / "a.params", {})
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    with pytest.raises(ValueError, match=r"out.safetensors already exists and is left as it is"):
        import_weights(source, out)
    assert out.read_text() == "precious"
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        import_weights(source, tmp_path / "none" / "out.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none.params: there is no such file"):
        import_weights(tmp_path / "none.params", tmp_path / "new.safetensors")


def test_changes_that_make_another_network(demonstration: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.params", demonstration[1])
    with pytest.raises(ValueError, match=r"lacks the parameters backbone.layer4.2.conv2.*, with deform_layers=1"):
        import_weights(source, tmp_path / "out.safetensors", assignments=["deform_layers=1"])
    with pytest.raises(ValueError, match=r"unknown arg:rfcn_cls_offset_t_weight"):
        import_weights(source, tmp_path / "out.safetensors", assignments=["deform_roi=false"])
    with pytest.raises(ValueError, match=r"has 20 classes without the background; .* got 2: cat, dog"):
        import_weights(source, tmp_path / "out.safetensors", classes=["cat", "dog"])
    assert not (tmp_path / "out.safetensors").exists()
