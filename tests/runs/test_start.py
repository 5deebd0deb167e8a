"""What a training takes from earlier weights: of Pliant, of torchvision, and of files of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from pliant.backbones.transfer import most_fitting_prefix, said_resnet
from pliant.models import fpn_faster_rcnn
from pliant.recipes import find_recipe, override
from pliant.recipes.base import Recipe
from pliant.runs.initial_weights import read_initial
from pliant.runs.start import Start
from pliant.runs.training import build_module, describe, start_module, weights_description
from pliant.runs.weights import write_weights
from pliant.tasks.splits import Splits
from pliant.tasks.task import build_model

TINY = ("backbone=timm/test_resnet", "short_side=64", "max_side=64")


def recipe(name: str, *changes: str) -> Recipe:
    return override(find_recipe(name), (*TINY, *changes))


def written(path: Path, name: str, classes: Sequence[str], *changes: str) -> tuple[Path, dict[str, Any]]:
    """A file as `pliant train` writes it, and its tensors, all of them different from initial ones."""
    chosen = recipe(name, *changes)
    model = build_model(chosen, classes, pretrained=False)
    torch.manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    description = describe(name, changes, chosen, classes, Splits("train", None, None), path.parent)
    write_weights(path, model, {**weights_description(description), "step": 7})
    return path, model.state_dict()


def started(weights: Path, name: str, classes: Sequence[str], *changes: str) -> tuple[dict[str, Any], Start]:
    chosen = recipe(name, f"weights={weights}", *changes)
    module, start = start_module(chosen, classes, read_initial(chosen))
    assert start is not None
    return module.model.state_dict(), start


def same(name: str, state: dict[str, Any], other: dict[str, Any]) -> bool:
    return name in other and torch.equal(state[name], other[name])


def test_all_of_a_network_with_the_same_classes(tmp_path: Path) -> None:
    path, theirs = written(tmp_path / "a.safetensors", "voc.faster_rcnn", ["a", "b"])
    state, start = started(path, "voc.faster_rcnn", ["a", "b"])
    assert all(same(name, state, theirs) for name in state)
    assert (start.left_out, start.missing, start.differs) == ({}, {}, {})
    assert start.lines()["weights"] == f"{path} (voc.faster_rcnn, step 7)"


@pytest.mark.parametrize("classes", [["a", "c"], ["b", "a"], ["a", "b", "c"]])
def test_layers_of_other_classes_start_anew(tmp_path: Path, classes: list[str]) -> None:
    """By name: as many classes, or the same ones in another order, are other classes."""
    path, theirs = written(tmp_path / "a.safetensors", "voc.faster_rcnn", ["a", "b"])
    state, start = started(path, "voc.faster_rcnn", classes)
    heads = {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}
    assert start.left_out == dict.fromkeys(sorted(heads, reverse=True), "for other classes") | start.left_out
    assert set(start.left_out) == heads
    assert start.missing == {"roi_heads.box_predictor": "starts anew"}
    assert {name.rpartition(".")[0] for name in state if not same(name, state, theirs)} == heads
    assert "roi_heads.box_head" in start.loaded


@pytest.mark.parametrize(
    ("name", "layers"), [("voc.rfcn", {"roi_heads.box_roi_pool.scores"}), ("voc.deeplab", {"score"})]
)
def test_layers_of_classes_of_other_networks(tmp_path: Path, name: str, layers: set[str]) -> None:
    path, theirs = written(tmp_path / "a.safetensors", name, ["x", "a", "b"])
    state, start = started(path, name, ["x", "a", "c"])
    anew = {key.rpartition(".")[0] for key in state if not same(key, state, theirs)}
    assert layers <= anew <= layers | {"upsample"}
    assert set(start.left_out) == anew
    assert start.missing


def test_a_plain_network_starts_a_deformable_one_and_the_reverse(tmp_path: Path) -> None:
    plain, theirs = written(tmp_path / "plain.safetensors", "voc.faster_rcnn", ["a"])
    state, start = started(plain, "voc.faster_rcnn", ["a"], "deform_layers=2", "deform_roi=true")
    branches = [name for name in state if "offset_conv" in name or "offset_fc" in name]
    assert len(branches) == 6
    assert not any(state[name].any() for name in branches)
    assert all(same(name, state, theirs) for name in set(state) - set(branches))
    assert start.missing == {"3 offset branches": "start at zero"}
    deformed, theirs = written(tmp_path / "deformed.safetensors", "voc.faster_rcnn", ["a"], "deform_layers=2")
    state, start = started(deformed, "voc.faster_rcnn", ["a"])
    assert all(same(name, state, theirs) for name in state)
    assert len(start.left_out) == 2
    state, start = started(deformed, "voc.faster_rcnn", ["a"], "deform_layers=1", "modulated=true")
    assert not any(state[name].any() for name in state if "offset_conv" in name)
    assert len(start.left_out) == 2
    assert start.differs == {"modulated": "False there, True here"}


def test_another_network_takes_the_backbone(tmp_path: Path) -> None:
    """Of a detector on a pyramid, of a classifier whose layers timm names otherwise, and of a detector."""
    pyramid, theirs = written(tmp_path / "pyramid.safetensors", "coco.fpn_faster_rcnn", ["a"])
    state, start = started(pyramid, "voc.deeplab", ["x", "a"])
    inner = [name for name in state if name.startswith("backbone.")]
    assert inner
    assert all(torch.equal(state[name], theirs[name.replace("backbone.", "backbone.body.", 1)]) for name in inner)
    assert start.left_out["rpn.head"] == "not of this network"
    assert start.loaded == [f"the backbone timm/test_resnet ({len(inner)} tensors)"]
    options = ("backbone=timm/test_convnext", "short_side=64", "max_side=64")
    classifier, theirs = written(
        tmp_path / "classifier.safetensors",
        "imagenet.resnet101",
        ["a", "b"],
        *options,
        "crop=64",
    )
    state, start = started(classifier, "voc.deeplab", ["x", "a"], *options)
    assert torch.equal(state["backbone.body.stem_0.weight"], theirs["backbone.stem.0.weight"])
    assert f"({len([key for key in state if key.startswith('backbone.')])} tensors)" in start.loaded[0]


def test_norms_stay_as_the_weights_have_them(tmp_path: Path) -> None:
    path, theirs = written(tmp_path / "a.safetensors", "voc.deeplab", ["x", "a"], "frozen=false")
    for changes, trained in (((), False), (("frozen=false",), True)):
        chosen = recipe("voc.deeplab", f"weights={path}", *changes)
        model = build_module(chosen, ["x", "a"]).model
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) is trained
        state = model.state_dict()
        assert all(same(name, state, theirs) for name in state if not name.endswith("num_batches_tracked"))


def test_files_of_resnets_say_which_they_are(tmp_path: Path) -> None:
    for model, name in ((resnet18(), "resnet18"), (resnet50(), "resnet50")):
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
    for file, backbone, message in (
        ("resnet50", "resnet101", "it is a ResNet-50, and .* resnet101, a ResNet-101: set backbone=resnet50, or give"),
        ("resnet50", "timm/resnet101", "set backbone=timm/resnet50, or give weights of a ResNet-101"),
        ("resnet18", "resnet50", "it is a ResNet-18, and .* resnet50, a ResNet-50: give weights of a ResNet-50"),
        ("resnet18", "timm/test_resnet", r"it is a ResNet-18, and the backbone is timm/test_resnet"),
        ("resnet50", "aligned_inception_resnet", "set backbone=timm/resnet50, or give weights of aligned"),
    ):
        with pytest.raises(ValueError, match=message):
            started(tmp_path / f"{file}.pth", "voc.deeplab", ["x", "a"], f"backbone={backbone}")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"0 of the \d+ tensors of the backbone timm/test_resnet fit: missing "):
        started(tmp_path / "other.pth", "voc.deeplab", ["x", "a"])


def test_forms_of_a_resnet_are_not_mixed_up(tmp_path: Path, shared: Path) -> None:
    """Caffe's and torchvision's have the same names and shapes."""
    caffe = shared / "weights" / "resnet50_imagenet_int8.pth"
    state, _ = started(caffe, "voc.deeplab", ["x", "a"], "backbone=resnet50")
    assert state["backbone.bn1.running_var"].max() > 80_000
    with pytest.raises(ValueError, match=r"minus a mean, like Caffe's ResNets, .* set backbone=resnet50"):
        started(caffe, "voc.deeplab", ["x", "a"], "backbone=timm/resnet50")
    path, _ = written(tmp_path / "a.safetensors", "voc.deeplab", ["x", "a"], "backbone=resnet50")
    with pytest.raises(ValueError, match=r"trained with backbone=resnet50, and .* set backbone=resnet50"):
        started(path, "voc.deeplab", ["x", "a"], "backbone=timm/resnet50")


def test_torchvisions_detector_starts_ours(tmp_path: Path) -> None:
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "fasterrcnn_resnet50_fpn_coco.pth")
    state, start = started(
        tmp_path / "fasterrcnn_resnet50_fpn_coco.pth", "coco.fpn_faster_rcnn", ["a"], "backbone=timm/resnet50"
    )
    assert set(start.left_out.values()) == {"for other classes"}
    assert {"backbone.fpn", "rpn.head", "roi_heads.box_head"} <= set(start.loaded)
    theirs = model.state_dict()
    assert same("backbone.fpn.layer_blocks.2.0.weight", state, theirs)
    assert torch.equal(state["backbone.body.body.layer4.2.conv3.weight"], theirs["backbone.body.layer4.2.conv3.weight"])


def test_what_cannot_start_a_training(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.onnx").touch()
    for name, message in (("empty", "neither a run folder"), ("a.onnx", "an exported network")):
        with pytest.raises(ValueError, match=message):
            read_initial(recipe("voc.deeplab", f"weights={tmp_path / name}"))
    assert read_initial(recipe("voc.deeplab", "weights=random")) is None
    fpn_faster_rcnn(2, backbone="timm/test_resnet").save_pretrained(tmp_path / "hub")
    assert read_initial(recipe("voc.deeplab", f"weights={tmp_path / 'hub'}")) is not None


def test_prefixes_and_names() -> None:
    wanted = ["conv1.weight", "layer1.0.conv1.weight"]
    assert most_fitting_prefix(["a.b.conv1.weight", "a.b.layer1.0.conv1.weight", "fc.weight"], wanted) == "a.b."
    assert most_fitting_prefix(["x", "y.z"], wanted) == ""
    assert said_resnet(resnet50().state_dict()) == "ResNet-50"
    assert said_resnet(["a.weight"]) is None
