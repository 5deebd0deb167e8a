"""mmdetection's checkpoints become ours: names and numbers written by hand, and the difference between the two."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from importers.authors_file import scramble
from torch import Tensor, nn

from pliant.commands.import_weights import import_weights
from pliant.importers import mmdetection
from pliant.models import fpn_faster_rcnn
from pliant.recipes import find_recipe, override
from pliant.runs.initial_weights import read_initial
from pliant.runs.trained import load_trained

NAMES = ("ant", "bee", "cow", "dog")
LAYERS = {
    "rpn.head.conv.0.0": "rpn_head.rpn_conv",
    "rpn.head.cls_logits": "rpn_head.rpn_cls",
    "rpn.head.bbox_pred": "rpn_head.rpn_reg",
    "roi_heads.box_head.fc6": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc7": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
}


def their_name(ours: str) -> str:
    layer, part = ours.rsplit(".", 1)
    if layer in LAYERS:
        return f"{LAYERS[layer]}.{part}"
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0", layer):
        return f"neck.{'lateral' if match[1] == 'inner' else 'fpn'}_convs.{match[2]}.conv.{part}"
    assert layer.startswith("backbone.body.body."), ours
    return f"{layer.replace('backbone.body.body', 'backbone').replace('offset_conv', 'conv_offset')}.{part}"


def checkpoint(model: nn.Module) -> OrderedDict[str, Tensor]:
    state = OrderedDict((their_name(ours), value.clone()) for ours, value in model.state_dict().items())
    head = "roi_head.bbox_head"
    for part in ("weight", "bias"):
        scores, boxes = state[f"{head}.fc_cls.{part}"], state[f"{head}.fc_reg.{part}"]
        state[f"{head}.fc_cls.{part}"] = torch.cat((scores[1:], scores[:1]))
        state[f"{head}.fc_reg.{part}"] = boxes[4:]
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    return state


@pytest.fixture(scope="module")
def modulated() -> tuple[nn.Module, OrderedDict[str, Tensor]]:
    """Two groups of offsets and modulation, whose sigmoid is half of ours."""
    options = {"deform_stages": 3, "modulated": True, "offset_groups": 2}
    model = scramble(fpn_faster_rcnn(5, backbone="timm/resnet50", **options, min_size=64, max_size=96))
    state = checkpoint(model)
    for name in [name for name in state if name.endswith("conv_offset.weight")]:
        assert state[name].shape[0] == 54
        state[name.replace("conv_offset.", "")] *= 2
    return model, state


def same_network(ours: nn.Module, theirs: nn.Module) -> None:
    left, right = theirs.state_dict(), ours.state_dict()
    assert set(left) == set(right)
    for name, value in left.items():
        if "box_predictor.bbox_pred" in name:  # the background has no box
            assert not right[name][:4].any()
            torch.testing.assert_close(right[name][4:], value[4:])
        else:
            torch.testing.assert_close(right[name], value, msg=name)


def test_modulated_checkpoint(modulated: Any, tmp_path: Path) -> None:
    model, state = modulated
    torch.save({"meta": {"CLASSES": NAMES}, "state_dict": state}, tmp_path / "mdconv.pth")
    small = ["short_side=64", "max_side=96"]
    done = import_weights(tmp_path / "mdconv.pth", tmp_path / "out.safetensors", assignments=small)
    assert (done.name, done.classes) == ("coco.fpn_faster_rcnn_modulated", NAMES)
    again = load_trained(tmp_path / "out.safetensors").model()
    assert again.config == model.config
    same_network(again, model)
    with torch.no_grad():
        image = torch.rand(3, 64, 80)
        found, expected = again([image])[0], model([image])[0]
        assert len(expected["scores"])
        for key in ("boxes", "scores", "labels"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_plain_deformable_stage(tmp_path: Path) -> None:
    model = scramble(fpn_faster_rcnn(3, backbone="timm/resnet50", deform_stages=1))
    meta = {"dataset_meta": {"classes": ("cat", "dog"), "palette": [(1, 2, 3)]}}
    torch.save({"meta": meta, "state_dict": checkpoint(model)}, tmp_path / "dconv.pth")
    done = import_weights(tmp_path / "dconv.pth", tmp_path / "out.safetensors")
    assert (done.name, done.classes) == ("coco.fpn_faster_rcnn_deform", ("cat", "dog"))
    again = load_trained(tmp_path / "out.safetensors").model()
    assert again.config == model.config
    same_network(again, model)


def test_deeper_network() -> None:
    body = timm.create_model("resnet101", features_only=True)
    arrays = {f"backbone.{name}": value for name, value in body.state_dict().items() if "num_batches" not in name}
    heads = {"neck.fpn_convs.0.conv.weight": torch.zeros(1), "roi_head.bbox_head.fc_cls.weight": torch.zeros(5, 2)}
    network = mmdetection.recognise("a.pth", {**arrays, **heads})
    assert network == mmdetection.MMDetectionNetwork(101, 5, 0, 1, False)
    assert set(arrays) == {name for name in network.names() if name.startswith("backbone.")}


def test_what_does_not_fit_is_listed(modulated: Any, tmp_path: Path) -> None:
    state = dict(modulated[1])
    del state["neck.lateral_convs.2.conv.bias"]
    state["roi_head.mask_head.convs.0.conv.weight"] = torch.zeros(256, 256, 3, 3)
    state["rpn_head.rpn_cls.weight"] = torch.zeros(6, 256, 1, 1)
    torch.save({"state_dict": state}, tmp_path / "mask.pth")
    with pytest.raises(ValueError, match=r"mask.pth does not fit coco.fpn_faster_rcnn_modulated") as raised:
        import_weights(tmp_path / "mask.pth", tmp_path / "out.safetensors", classes=NAMES)
    assert str(raised.value).split(": ", 1)[1].split("; ") == [
        "missing neck.lateral_convs.2.conv.bias [256]",
        "unknown roi_head.mask_head.convs.0.conv.weight [256, 256, 3, 3]",
        "rpn_head.rpn_cls.weight has shape [6, 256, 1, 1], expected [3, 256, 1, 1]",
    ]
    assert not (tmp_path / "out.safetensors").exists()


def test_caffe_style_is_told_apart_by_its_first_layer(modulated: Any, tmp_path: Path) -> None:
    state = dict(modulated[1])
    state["backbone.bn1.running_var"] = state["backbone.bn1.running_var"] * 60**2
    torch.save(state, tmp_path / "caffe.pth")
    with pytest.raises(ValueError, match=r"caffe.pth has a ResNet in Caffe's style"):
        import_weights(tmp_path / "caffe.pth", tmp_path / "out.safetensors", classes=NAMES)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    def refused(content: Any, message: str) -> None:
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=message):
            import_weights(tmp_path / "a.pth", tmp_path / "out.safetensors")

    refused({"state_dict": {"bbox_head.fc_cls.weight": torch.zeros(81, 1024)}}, "neither MXNet's .params nor a Faster")
    refused({"state_dict": [1, 2]}, "must hold a dict of tensors")
    refused([torch.zeros(1)], "must hold a dict, got list")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"cut.pth is not a complete file of tensors"):
        import_weights(tmp_path / "cut.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "unpickled"))


@pytest.mark.parametrize("old", [False, True])
def test_no_code_in_a_pickle_runs(tmp_path: Path, old: bool) -> None:
    trap = tmp_path / "trap"
    content = {"state_dict": {"a": torch.zeros(1)}, "meta": Harmful(trap), "history": np.float64(1)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"a.pth holds other objects than tensors, and is not unpickled"):
        import_weights(tmp_path / "a.pth", tmp_path / "out.safetensors")
    assert not trap.exists()


def test_a_checkpoint_starts_a_training_as_it_would_be_imported(modulated: Any, tmp_path: Path) -> None:
    path = tmp_path / "their.pth"
    torch.save({"meta": {"dataset_meta": {"classes": NAMES}}, "state_dict": modulated[1]}, path)
    recipe = override(find_recipe("coco.fpn_faster_rcnn"), [f"weights={path}"])
    initial = read_initial(recipe)
    assert initial is not None
    assert (initial.network, initial.classes, initial.backbone) == ("detection.fpn_faster_rcnn", NAMES, "timm/resnet50")
    import_weights(path, tmp_path / "ours.safetensors")
    state = load_trained(tmp_path / "ours.safetensors").state
    assert all(torch.equal(initial.tensors[name], value) for name, value in state.items())
    caffe = {**modulated[1], "backbone.bn1.running_var": torch.full((64,), 8e4)}
    torch.save({name: value for name, value in caffe.items() if "roi_head" not in name}, path)
    with pytest.raises(ValueError, match="a ResNet in Caffe's style, whose images are BGR"):
        read_initial(recipe)
