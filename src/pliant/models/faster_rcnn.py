"""Faster R-CNN of the paper: RPN on conv4, head on conv5, plain or deformable in convolution and RoI pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pliant.backbones import backbone as build_backbone
from pliant.nn import DeformRoIPool, RoIPool

STRIDE = 16


class FasterRCNN(GeneralizedRCNN):
    """torchvision's detector interface; `config` holds the arguments of `faster_rcnn` that built it."""

    config: dict[str, Any]


def faster_rcnn(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    weights: str | Path | None = None,
    frozen: bool = True,
    deform_layers: int = 3,
    deform_roi: bool = True,
    dilation: int = 2,
    padded_pool: bool = False,
    offset_groups: int = 1,
    modulated: bool = False,
    border: str = "paper",
    sampling: str = "paper",
    min_size: int = 600,
    max_size: int = 1000,
    anchor_scales: Sequence[int] = (8, 16, 32),
    score_thresh: float = 1e-3,
    nms_thresh: float = 0.3,
    detections_per_image: int = 300,
) -> FasterRCNN:
    """Faster R-CNN with a head of two fully connected layers (Dai et al. 2017, section 3.2 and their code).

    Follows torchvision's conventions: images are a list of `Tensor[3, H, W]` in 0..1, targets a list of dicts
    with `boxes` (x0, y0, x1, y1) and `labels` (1 to num_classes - 1); the result is a dict of losses in
    training, else a list of dicts with `boxes`, `labels`, `scores`.

    Three numbers are torchvision's and not the paper's: background RoIs are drawn from IoU 0 on (the authors:
    0.1), the head's smooth L1 has its bend at 1/9 (the authors: 1), and images are padded to a multiple of 16.

    Args:
        num_classes: with the background.
        backbone, weights, frozen, deform_layers, dilation, padded_pool, offset_groups, modulated, border: see
            `pliant.backbones.backbone`.
        deform_roi: deformable RoI pooling instead of the plain average.
        sampling: of the RoI pooling, `"paper"` or `"authors"`.
        min_size, max_size: the image's short side is scaled to min_size pixels, the long one at most to max_size.
        anchor_scales: anchor sides in multiples of 16 pixels; aspect ratios are 1:2, 1:1, 2:1.
        score_thresh, nms_thresh, detections_per_image: of the final detections.
    """
    config = {name: value for name, value in locals().items() if name != "weights"}
    if num_classes < 2:
        raise ValueError(f"num_classes counts the background and must be at least 2, got {num_classes}")
    body = build_backbone(
        backbone,
        weights=weights,
        frozen=frozen,
        deform_layers=deform_layers,
        dilation=dilation,
        padded_pool=padded_pool,
        offset_groups=offset_groups,
        modulated=modulated,
        border=border,
    )
    heads = RoIHeads(
        box_roi_pool=ReducedRoIPool(body.conv5_channels, 256, deform=deform_roi, sampling=sampling),
        box_head=TwoMLPHead(256 * 7**2, 1024),
        box_predictor=FastRCNNPredictor(1024, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=128,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_image,
    )
    transform = GeneralizedRCNNTransform(
        min_size, max_size, list(body.image_mean), list(body.image_std), size_divisible=STRIDE
    )
    rpn = _rpn(body.conv4_channels, anchor_scales)
    for module in (rpn, heads.box_roi_pool.reduce, heads.box_head, heads.box_predictor):
        module.apply(_start)
    model = FasterRCNN(body, rpn, heads, transform)
    model.config = config | {"anchor_scales": list(anchor_scales)}
    return model


class ReducedRoIPool(nn.Module):
    """Reduce conv5 by a 1x1 convolution and pool it at the RoIs, where torchvision's heads call their pooler."""

    def __init__(self, in_channels: int, channels: int, *, deform: bool, sampling: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.pool: RoIPool = (
            DeformRoIPool(channels, 7, 1 / STRIDE, sampling=sampling) if deform else RoIPool(7, 1 / STRIDE, sampling)
        )

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        reduced = F.relu(self.reduce(features["conv5"]))
        return self.pool(reduced, [box.to(reduced.dtype) for box in boxes])


class RPNHead(nn.Module):
    """The RPN's 3x3 convolution to 512 channels with its two 1x1 outputs."""

    def __init__(self, in_channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 512, 3, padding=1)
        self.cls_logits = nn.Conv2d(512, anchors, 1)
        self.bbox_pred = nn.Conv2d(512, 4 * anchors, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [F.relu(self.conv(feature)) for feature in features]
        return [self.cls_logits(map) for map in hidden], [self.bbox_pred(map) for map in hidden]


class Conv4RPN(RegionProposalNetwork):
    """torchvision's RPN, looking at conv4 alone."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return super().forward(images, OrderedDict(conv4=features["conv4"]), targets)


def _rpn(channels: int, anchor_scales: Sequence[int]) -> Conv4RPN:
    sizes = tuple(STRIDE * scale for scale in anchor_scales)
    anchors = AnchorGenerator(sizes=(sizes,), aspect_ratios=((0.5, 1.0, 2.0),))
    return Conv4RPN(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 6000, "testing": 6000},
        post_nms_top_n={"training": 300, "testing": 300},
        nms_thresh=0.7,
    )


@torch.no_grad()
def _start(module: nn.Module) -> None:
    """New layers start from N(0, 0.01), biases at zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
