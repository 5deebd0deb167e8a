"""Faster R-CNN of the paper: RPN on conv4, head on conv5, plain or deformable in convolution and RoI pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import RoIPool as MaxRoIPool
from torchvision.ops._utils import convert_boxes_to_roi_format

from pliant.backbones import BackboneOptions
from pliant.backbones import backbone as build_backbone
from pliant.models.anchors import STRIDE
from pliant.models.detector import Detector, arguments, start
from pliant.models.hub import builds
from pliant.models.roi_heads import BoxHead
from pliant.models.rpn import Conv4RPN
from pliant.models.transform import image_transform, inclusive
from pliant.nn import DeformRoIPool, RoIPool


class FasterRCNN(Detector):
    """What `faster_rcnn` builds."""


@builds(FasterRCNN)
def faster_rcnn(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    deform_layers: int = 3,
    deform_roi: bool = True,
    sampling: str = "paper",
    framing: str = "paper",
    background_iou: float = 0.1,
    min_size: int = 600,
    max_size: int = 1000,
    anchor_scales: Sequence[int] = (8, 16, 32),
    score_thresh: float = 1e-3,
    nms_thresh: float = 0.3,
    detections_per_image: int = 300,
    **options: Unpack[BackboneOptions],
) -> FasterRCNN:
    """Faster R-CNN with a head of two fully connected layers (Dai et al. 2017, section 2.3 and their code).

    Follows torchvision's conventions: images are a list of `Tensor[3, H, W]` in 0..1, targets a list of dicts
    with `boxes` (x0, y0, x1, y1) and `labels` (1 to num_classes - 1); the result is a dict of losses in
    training, else a list of dicts with `boxes`, `labels`, `scores`.

    Args:
        num_classes: with the background.
        backbone, deform_layers: see `pliant.backbones.backbone`.
        deform_roi: deformable RoI pooling instead of the plain average.
        sampling: of the RoI pooling, `"paper"` or `"authors"`; their plain network takes the maximum of a bin.
        framing: `"paper"` pads images to a multiple of 16 and takes boxes by their edges; `"authors"` is theirs to
            the pixel, which weights that they trained need.
        background_iou: RoIs that overlap every object by less are not learned from.
        min_size, max_size: the image's short side is scaled to min_size pixels, the long one at most to max_size.
        anchor_scales: anchor sides in multiples of 16 pixels; aspect ratios are 1:2, 1:1, 2:1.
        score_thresh, nms_thresh, detections_per_image: of the final detections.
        options: weights, dilation and the further arguments of `pliant.backbones.backbone`.
    """
    config = arguments(locals(), options)
    body = build_backbone(backbone, deform_layers=deform_layers, **options)
    heads = BoxHead(
        ReducedRoIPool(body.conv5_channels, 256, deform=deform_roi, sampling=sampling),
        TwoMLPHead(256 * 7**2, 1024),
        FastRCNNPredictor(1024, num_classes),
        num_classes=num_classes,
        background_iou=background_iou,
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_image=detections_per_image,
    )
    rpn = Conv4RPN(body.conv4_channels, anchor_scales, framing)
    for module in (rpn, heads.box_roi_pool.reduce, heads.box_head, heads.box_predictor):
        module.apply(start)
    transform = image_transform(framing, min_size, max_size, body.image_mean, body.image_std, STRIDE)
    return FasterRCNN(body, rpn, heads, transform, config)


class ReducedRoIPool(nn.Module):
    """Reduce conv5 by a 1x1 convolution and pool it at the RoIs, where torchvision's heads call their pooler."""

    def __init__(self, in_channels: int, channels: int, *, deform: bool, sampling: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.sampling = sampling
        self.pool: nn.Module
        if deform:
            self.pool = DeformRoIPool(channels, 7, 1 / STRIDE, sampling=sampling)
        else:
            self.pool = MaxRoIPool(7, 1 / STRIDE) if sampling == "authors" else RoIPool(7, 1 / STRIDE)

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor] | Tensor, image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        reduced = F.relu(self.reduce(features["conv5"]))
        return self.pool(reduced, rois_of(boxes, reduced, self.sampling))


def rois_of(boxes: list[Tensor] | Tensor, features: Tensor, sampling: str) -> Tensor:
    """Boxes of each image, or `[R, 5]`, as the pooling takes them: the authors' counts a RoI's last pixel in."""
    rois = boxes if isinstance(boxes, Tensor) else convert_boxes_to_roi_format(boxes)
    if sampling == "authors":
        rois = torch.cat((rois[:, :1], inclusive(rois[:, 1:])), dim=1)
    return rois.to(features.dtype)
