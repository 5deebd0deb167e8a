"""The networks that the paper's authors trained in MXNet: recognise one, and convert its tensors to ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

BLOCKS = (3, 4, 23, 3)
# The authors' networks predict the four box deltas in units of these.
BOX_STDS = (0.1, 0.1, 0.2, 0.2)
# In RGB, 0..255; the mean of our ResNets differs by half a level.
IMAGE_MEAN = (123.15, 115.90, 103.06)
_STATISTICS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
_RPN = {"rpn_conv_3x3": "rpn.head.conv", "rpn_cls_score": "rpn.head.cls_logits", "rpn_bbox_pred": "rpn.head.bbox_pred"}
_POOL = "roi_heads.box_roi_pool"
_HEADS = {
    "rfcn": {
        "conv_new_1": f"{_POOL}.reduce",
        "rfcn_cls": f"{_POOL}.scores",
        "rfcn_bbox": f"{_POOL}.boxes",
    },
    "faster_rcnn": {
        "conv_new_1": f"{_POOL}.reduce",
        "fc_new_1": "roi_heads.box_head.fc6",
        "fc_new_2": "roi_heads.box_head.fc7",
        "cls_score": "roi_heads.box_predictor.cls_score",
        "bbox_pred": "roi_heads.box_predictor.bbox_pred",
    },
    "deeplab": {"fc6": "fc6", "score": "score"},
}
_ROI_OFFSETS = {
    "rfcn": {
        "rfcn_cls_offset_t": f"{_POOL}.score_pool.offset_conv",
        "rfcn_bbox_offset_t": f"{_POOL}.box_pool.offset_conv",
    },
    "faster_rcnn": {"offset": f"{_POOL}.pool.offset_fc"},
    "deeplab": {},
}
_SCORES = {"rfcn": "rfcn_cls", "faster_rcnn": "cls_score", "deeplab": "score"}
_BOXES = {"rfcn": "rfcn_bbox", "faster_rcnn": "bbox_pred"}


@dataclass(frozen=True)
class AuthorsNetwork:
    """What the names and shapes of a file say about its network.

    Attributes:
        network: `"rfcn"`, `"faster_rcnn"` or `"deeplab"`.
        num_classes: number of classes with the background.
        deform_layers: number of deformable 3x3 convolutions, counted from the last one.
        offset_groups: their number of offset groups; 1 if there are none.
        deform_roi: whether RoI pooling is deformable.
        anchors: number of anchors of a cell; 0 for DeepLab.
        bins: k of R-FCN's position-sensitive pooling; 7 for the others.
    """

    network: str
    num_classes: int
    deform_layers: int
    offset_groups: int
    deform_roi: bool
    anchors: int
    bins: int

    def names(self) -> dict[str, str]:
        """The names of the tensors in the file, each with its name in our network's state."""
        layers = dict(_HEADS[self.network])
        if self.deform_roi:
            layers |= _ROI_OFFSETS[self.network]
        names = _backbone_names(self.deform_layers)
        if self.network == "deeplab":
            names["arg:upsampling_weight"] = "upsample.weight"
        else:
            layers |= _RPN
        for theirs, ours in layers.items():
            names |= {f"arg:{theirs}_{part}": f"{ours}.{part}" for part in ("weight", "bias")}
        return names

    def shapes(self, state: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """The shapes that the file must have for our network's state; the authors' RPN also scores the background."""
        shapes = {theirs: list(state[ours].shape) for theirs, ours in self.names().items() if ours in state}
        for part in ("weight", "bias"):
            if f"arg:rpn_cls_score_{part}" in shapes:
                shapes[f"arg:rpn_cls_score_{part}"][0] *= 2
        return shapes

    def convert(self, arrays: Mapping[str, Tensor], *, denormalized: bool) -> dict[str, Tensor]:
        """Convert arrays with the names and shapes of `shapes` to our network's state.

        Args:
            arrays: the arrays that `without_test_keys` returned.
            denormalized: whether the outputs of the box layer are box deltas as such, not in units of `BOX_STDS`.
        """
        state = {ours: arrays[theirs].float() for theirs, ours in self.names().items()}
        if self.network == "deeplab":
            return state
        for part in ("weight", "bias"):
            # The softmax of two scores is the sigmoid of their difference.
            background, foreground = state[f"rpn.head.cls_logits.{part}"].chunk(2)
            state[f"rpn.head.cls_logits.{part}"] = foreground - background
            if denormalized:
                name = f"{_HEADS[self.network][_BOXES[self.network]]}.{part}"
                state[name] = state[name] / self._box_stds().view(-1, *(1,) * (state[name].dim() - 1))
        return state

    def _box_stds(self) -> Tensor:
        """The unit of each output of the box layer; R-FCN has k * k outputs for each box delta."""
        if self.network == "rfcn":
            return torch.tensor(BOX_STDS).repeat_interleave(self.bins**2).repeat(2)
        return torch.tensor(BOX_STDS).repeat(self.num_classes)


def recognise(path: str | Path, arrays: Mapping[str, Tensor]) -> AuthorsNetwork:
    """Recognise a network by the names and first dimensions of its last layers.

    Raises:
        ValueError: the arrays are of none of the authors' networks, or have impossible dimensions.
    """
    network = next((name for name, layer in _SCORES.items() if f"arg:{layer}_weight" in arrays), None)
    if network is None:
        raise ValueError(
            f"{path} holds none of the authors' networks: there is no arg:rfcn_cls_weight (R-FCN), "
            f"arg:cls_score_weight (Faster R-CNN) or arg:score_weight (DeepLab) among {len(arrays)} arrays: "
            f"{', '.join(list(arrays)[:8])}"
        )
    scores = _outputs(arrays, f"arg:{_SCORES[network]}_weight", 0)
    bins = 7
    if network == "rfcn":
        boxes = _outputs(arrays, "arg:rfcn_bbox_weight", 8 * bins**2)
        bins = math.isqrt(boxes // 8)
        if not bins or boxes != 8 * bins**2 or scores % bins**2:
            raise ValueError(
                f"{path}: R-FCN has C * k * k scores and 8 * k * k boxes, which all classes share; arg:rfcn_cls_weight "
                f"has {scores} outputs and arg:rfcn_bbox_weight {boxes}"
            )
        scores //= bins**2
    if scores < 2:
        raise ValueError(f"{path}: arg:{_SCORES[network]}_weight gives {scores} classes, expected at least 2")
    layers, groups = _deformation(path, arrays)
    return AuthorsNetwork(
        network=network,
        num_classes=scores,
        deform_layers=layers,
        offset_groups=groups,
        deform_roi=any(f"arg:{layer}_weight" in arrays for layer in _ROI_OFFSETS[network]),
        anchors=0 if network == "deeplab" else _outputs(arrays, "arg:rpn_cls_score_weight", 24) // 2,
        bins=bins,
    )


def without_test_keys(path: str | Path, arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The arrays that the authors test with, and whether any of them replaced a trained one.

    After training, the authors' code writes the box layer a second time, denormalized, as `NAME_test`.

    Raises:
        ValueError: the `_test` arrays are not the weight and bias of the box layer.
    """
    tested = {name.removesuffix("_test"): value for name, value in arrays.items() if name.endswith("_test")}
    allowed = [{f"arg:{layer}_{part}" for part in ("weight", "bias")} for layer in _BOXES.values()]
    if tested and set(tested) not in allowed:
        raise ValueError(
            f"{path} must have the weight and bias of the box layer under _test, or no such array, got "
            f"{', '.join(f'{name}_test' for name in tested)}"
        )
    plain = {name: value for name, value in arrays.items() if not name.endswith("_test")}
    return {**plain, **tested}, bool(tested)


def _deformation(path: str | Path, arrays: Mapping[str, Tensor]) -> tuple[int, int]:
    """The number of deformable convolutions, and of their offset groups."""
    found = {
        name: _outputs(arrays, name, 0) for name in arrays if re.fullmatch(r"arg:res\w+_branch2b_offset_weight", name)
    }
    outputs = sorted(set(found.values()))
    if len(found) not in (0, 1, 2, 3, 6) or len(outputs) > 1 or any(not n or n % 18 for n in outputs):
        listed = ", ".join(f"{name} {count}" for name, count in found.items())
        raise ValueError(
            f"{path}: expected 0, 1, 2, 3 or 6 deformable 3x3 convolutions, all with 18 outputs for each group of "
            f"offsets, got {listed}"
        )
    return len(found), outputs[0] // 18 if outputs else 1


def _backbone_names(deform_layers: int) -> dict[str, str]:
    names = {"arg:conv1_weight": "backbone.conv1.weight", **_norm_names("bn_conv1", "backbone.bn1")}
    deformable: list[tuple[str, str]] = []
    for stage, blocks in enumerate(BLOCKS):
        for place, block in enumerate(_block_names(blocks)):
            theirs, ours = f"{stage + 2}{block}_branch", f"backbone.layer{stage + 1}.{place}"
            convolutions: Sequence[tuple[str, str, str]] = [
                (f"2{'abc'[i]}", f"conv{i + 1}", f"bn{i + 1}") for i in range(3)
            ]
            if place == 0:
                convolutions = [("1", "downsample.0", "downsample.1"), *convolutions]
            for branch, conv, norm in convolutions:
                names[f"arg:res{theirs}{branch}_weight"] = f"{ours}.{conv}.weight"
                names |= _norm_names(f"bn{theirs}{branch}", f"{ours}.{norm}")
            deformable.append((f"arg:res{theirs}2b_offset", f"{ours}.conv2.offset_conv"))
    for theirs, ours in deformable[len(deformable) - deform_layers :]:
        names |= {f"{theirs}_{part}": f"{ours}.{part}" for part in ("weight", "bias")}
    return names


def _block_names(blocks: int) -> list[str]:
    return ["a", "b", "c"] if blocks == 3 else ["a", *(f"b{i}" for i in range(1, blocks))]


def _norm_names(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{'aux' if part.startswith('running') else 'arg'}:{theirs}_{statistic}": f"{ours}.{part}"
        for part, statistic in _STATISTICS.items()
    }


def _outputs(arrays: Mapping[str, Tensor], name: str, default: int) -> int:
    """The first dimension of an array; `default` if it is missing, which `require_fit` reports later."""
    value = arrays.get(name)
    return default if value is None or not value.dim() else value.shape[0]
