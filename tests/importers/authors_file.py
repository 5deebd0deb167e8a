"""The authors' names and numbers for a network of ours: the table of their network definitions, written out by hand."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor, nn

BLOCKS = {
    "layer1": ("res2", "a b c"),
    "layer2": ("res3", "a b1 b2 b3"),
    "layer3": ("res4", "a b1 b2 b3 b4 b5 b6 b7 b8 b9 b10 b11 b12 b13 b14 b15 b16 b17 b18 b19 b20 b21 b22"),
    "layer4": ("res5", "a b c"),
}
CONVOLUTIONS = {
    "downsample.0": "branch1",
    "conv1": "branch2a",
    "conv2": "branch2b",
    "conv3": "branch2c",
    "conv2.offset_conv": "branch2b_offset",
}
NORMS = {"downsample.1": "branch1", "bn1": "branch2a", "bn2": "branch2b", "bn3": "branch2c"}
NORM_PARTS = {
    "weight": "arg:{}_gamma",
    "bias": "arg:{}_beta",
    "running_mean": "aux:{}_moving_mean",
    "running_var": "aux:{}_moving_var",
}
LAYERS = {
    "rpn.head.conv": "rpn_conv_3x3",
    "rpn.head.cls_logits": "rpn_cls_score",
    "rpn.head.bbox_pred": "rpn_bbox_pred",
    "roi_heads.box_roi_pool.reduce": "conv_new_1",
    "roi_heads.box_roi_pool.scores": "rfcn_cls",
    "roi_heads.box_roi_pool.boxes": "rfcn_bbox",
    "roi_heads.box_roi_pool.score_pool.offset_conv": "rfcn_cls_offset_t",
    "roi_heads.box_roi_pool.box_pool.offset_conv": "rfcn_bbox_offset_t",
    "roi_heads.box_roi_pool.pool.offset_fc": "offset",
    "roi_heads.box_head.fc6": "fc_new_1",
    "roi_heads.box_head.fc7": "fc_new_2",
    "roi_heads.box_predictor.cls_score": "cls_score",
    "roi_heads.box_predictor.bbox_pred": "bbox_pred",
    "fc6": "fc6",
    "score": "score",
    "upsample": "upsampling",
}


def their_name(ours: str) -> str:
    layer, part = ours.rsplit(".", 1)
    if layer in LAYERS:
        return f"arg:{LAYERS[layer]}_{part}"
    if layer == "backbone.conv1":
        return "arg:conv1_weight"
    if layer == "backbone.bn1":
        return NORM_PARTS[part].format("bn_conv1")
    match = re.fullmatch(r"backbone\.(layer\d)\.(\d+)\.(.*)", layer)
    assert match is not None, ours
    stage, names = BLOCKS[match[1]]
    block = f"{stage}{names.split()[int(match[2])]}"
    if match[3] in NORMS:
        return NORM_PARTS[part].format(f"bn{block.removeprefix('res')}_{NORMS[match[3]]}")
    return f"arg:{block}_{CONVOLUTIONS[match[3]]}_{part}"


def scramble(model: nn.Module) -> nn.Module:
    """Numbers everywhere that tell one tensor from another, small enough for 100 layers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.9, 1.1, generator=generator)
            elif value.dim() == 1:
                value.normal_(0.1, 0.01, generator=generator)
            else:
                value.normal_(0, 0.5 / value[0].numel() ** 0.5, generator=generator)
    return model.eval()


def authors_arrays(model: nn.Module, *, bins: int = 7, tested: bool = True) -> dict[str, np.ndarray]:
    """Their arrays of a network; with `tested`, the layer of the boxes stands under both its names."""
    arrays = {their_name(ours): value.detach() for ours, value in model.state_dict().items()}
    stds = [0.1, 0.1, 0.2, 0.2]
    for part in ("weight", "bias"):
        if f"arg:rpn_cls_score_{part}" in arrays:
            objectness = arrays[f"arg:rpn_cls_score_{part}"]
            background = torch.randn_like(objectness)
            arrays[f"arg:rpn_cls_score_{part}"] = torch.cat((background, background + objectness))
        for layer, repeated in (("rfcn_bbox", bins**2), ("bbox_pred", 1)):
            name = f"arg:{layer}_{part}"
            if tested and name in arrays:
                factors = [stds[row // repeated % 4] for row in range(len(arrays[name]))]
                arrays[f"{name}_test"] = scaled(arrays[name], factors)
                arrays[name] = arrays[name] + 7  # not used
    return {name: value.numpy() for name, value in arrays.items()}


def scaled(rows: Tensor, factors: list[float]) -> Tensor:
    return torch.stack([row * factor for row, factor in zip(rows, factors, strict=True)])
