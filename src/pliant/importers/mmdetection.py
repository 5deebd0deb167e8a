"""Checkpoints of mmdetection 2 and 3: recognise a Faster R-CNN on a feature pyramid, and convert it to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pliant.backbones.input_scale import trained_on_levels
from pliant.runs.tensors import read_file, require_tensors, unwrapped, without_prefix

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_BODY = "backbone.body.body"
_HEADS = {
    "rpn_head.rpn_conv": "rpn.head.conv.0.0",
    "rpn_head.rpn_cls": "rpn.head.cls_logits",
    "rpn_head.rpn_reg": "rpn.head.bbox_pred",
    "roi_head.bbox_head.shared_fcs.0": "roi_heads.box_head.fc6",
    "roi_head.bbox_head.shared_fcs.1": "roi_heads.box_head.fc7",
    "roi_head.bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
    "roi_head.bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
}
_SCORES, _BOXES = "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"
_NETWORK = [f"{name}.{part}" for name in _HEADS for part in ("weight", "bias")]
_NORM = ("weight", "bias", "running_mean", "running_var")
_OFFSET = re.compile(r"backbone\.layer([2-4])\.(\d+)\.conv2\.conv_offset\.weight")


@dataclass(frozen=True)
class MMDetectionNetwork:
    """What the names and shapes of a checkpoint say about its network.

    Attributes:
        depth: depth of the ResNet, 50 or 101, in torchvision's form and not Caffe's.
        num_classes: number of classes with the background.
        deform_stages: number of stages with deformable 3x3 convolutions, counted from the last one.
        offset_groups: their number of offset groups; 1 if there are none.
        modulated: whether the deformable convolutions are modulated (DCNv2).
    """

    depth: int
    num_classes: int
    deform_stages: int
    offset_groups: int
    modulated: bool

    def names(self) -> dict[str, str]:
        """The names of the tensors in the checkpoint, each with its name in our network's state."""
        names = {"backbone.conv1.weight": f"{_BODY}.conv1.weight", **_norm_names("bn1")}
        for stage, blocks in enumerate(_BLOCKS[self.depth], start=1):
            for block in (f"layer{stage}.{place}" for place in range(blocks)):
                layers = [(f"{block}.conv{i}", f"{block}.bn{i}") for i in (1, 2, 3)]
                if block.endswith(".0"):
                    layers.append((f"{block}.downsample.0", f"{block}.downsample.1"))
                for conv, norm in layers:
                    names |= {f"backbone.{conv}.weight": f"{_BODY}.{conv}.weight", **_norm_names(norm)}
                if stage > 4 - self.deform_stages:
                    theirs, ours = f"backbone.{block}.conv2.conv_offset", f"{_BODY}.{block}.conv2.offset_conv"
                    names |= _layer_names(theirs, ours)
        for level in range(4):
            names |= _layer_names(f"neck.lateral_convs.{level}.conv", f"backbone.fpn.inner_blocks.{level}.0")
            names |= _layer_names(f"neck.fpn_convs.{level}.conv", f"backbone.fpn.layer_blocks.{level}.0")
        for theirs, ours in _HEADS.items():
            names |= _layer_names(theirs, ours)
        return names

    def shapes(self, state: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """The shapes that the checkpoint must have for our network's state; it has no background box."""
        shapes = {theirs: list(state[ours].shape) for theirs, ours in self.names().items() if ours in state}
        for part in ("weight", "bias"):
            shapes[f"{_BOXES}.{part}"][0] -= 4
        return shapes

    def convert(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert arrays with the names and shapes of `shapes` to our network's state."""
        state = {ours: arrays[theirs].float() for theirs, ours in self.names().items()}
        for part in ("weight", "bias"):
            scores, boxes = (f"{_HEADS[name]}.{part}" for name in (_SCORES, _BOXES))
            state[scores] = state[scores].roll(1, dims=0)  # mmdetection has the background last
            state[boxes] = torch.cat((torch.zeros_like(state[boxes][:4]), state[boxes]))
        if self.modulated:
            # Theirs weights a sample by a sigmoid, ours by twice the sigmoid.
            for name in [name for name in state if name.endswith(".conv2.offset_conv.weight")]:
                weight = name.replace("offset_conv.weight", "weight")
                state[weight] = state[weight] / 2
        return state


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a checkpoint by name, without `num_batches_tracked`, and the names of its classes if it has them.

    Raises:
        FileNotFoundError, ValueError: see `pliant.runs.tensors.read_file`; also a ValueError without a dict of tensors.
    """
    stored = read_file(path)
    if not isinstance(stored, dict):
        raise ValueError(f"{path} must hold a dict, got {type(stored).__name__}")
    arrays = without_prefix(require_tensors(path, unwrapped(stored)), _NETWORK)
    arrays = {name: value for name, value in arrays.items() if not name.endswith("num_batches_tracked")}
    return arrays, _classes(stored.get("meta"))


def recognise(path: str | Path, arrays: Mapping[str, Tensor]) -> MMDetectionNetwork:
    """Recognise a network by the names and shapes of its tensors.

    Raises:
        ValueError: it is not mmdetection's Faster R-CNN with a feature pyramid, or is one on a Caffe-style ResNet.
    """
    scores = arrays.get(f"{_SCORES}.weight")
    if scores is None or scores.dim() != 2 or len(scores) < 2 or "neck.fpn_convs.0.conv.weight" not in arrays:
        raise ValueError(
            f"{path} is neither MXNet's .params nor a Faster R-CNN with a feature pyramid of mmdetection 2 or 3, which "
            f"has neck.fpn_convs.0.conv.weight and {_SCORES}.weight; it has {len(arrays)} tensors: "
            f"{', '.join(list(arrays)[:8])}"
        )
    if trained_on_levels(arrays.get("backbone.conv1.weight"), arrays.get("backbone.bn1.running_var")):
        raise ValueError(
            f"{path} has a ResNet in Caffe's style, by the statistics of its first layer; expected PyTorch's, with "
            "images divided by their deviation"
        )
    depth = 101 if "backbone.layer3.22.conv1.weight" in arrays else 50
    stages, groups, modulated = _deformation(path, arrays)
    return MMDetectionNetwork(depth, len(scores), stages, groups, modulated)


def _deformation(path: str | Path, arrays: Mapping[str, Tensor]) -> tuple[int, int, bool]:
    """The number of deformable stages and of their offset groups, and whether they are modulated."""
    found = {name: match for name in arrays if (match := _OFFSET.fullmatch(name)) and arrays[name].dim() == 4}
    if not found:
        return 0, 1, False
    first = min(int(match[1]) for match in found.values())
    outputs = {arrays[name].shape[0] for name in found}
    channels = min(arrays[name].shape[1] for name in found)
    kinds = [
        (count // each, modulated)
        for count in outputs
        for each, modulated in ((18, False), (27, True))
        # Groups divide the channels, a power of two; so 54 is not three groups without modulation.
        if count and count % each == 0 and channels % (count // each) == 0
    ]
    if len(outputs) != 1 or len(kinds) != 1:
        raise ValueError(
            f"{path}: expected all deformable convolutions with 18 outputs for each group of offsets, or 27 if "
            f"modulated, got {sorted(outputs)}"
        )
    return 5 - first, *kinds[0]


def _classes(meta: object) -> tuple[str, ...]:
    if not isinstance(meta, dict):
        return ()
    described = meta.get("dataset_meta")
    names = [described.get(key) for key in ("classes", "CLASSES")] if isinstance(described, dict) else []
    found = next((value for value in (meta.get("CLASSES"), *names) if isinstance(value, list | tuple)), ())
    return tuple(map(str, found))


def _layer_names(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def _norm_names(name: str) -> dict[str, str]:
    return {f"backbone.{name}.{part}": f"{_BODY}.{name}.{part}" for part in _NORM}
