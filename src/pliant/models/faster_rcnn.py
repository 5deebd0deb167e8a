"""Faster R-CNN of the paper: RPN on conv4, head on conv5; convolutions and RoI pooling plain or deformable."""

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
    """Faster R-CNN, as built by `faster_rcnn`. The arguments that built it are in `config`.

    Examples:
        >>> model = pliant.models.faster_rcnn(num_classes=3, backbone="timm/test_resnet")
        >>> model.config["num_classes"]
        3
        >>> model.save_pretrained("folder")
        >>> model = type(model).from_pretrained("folder")
    """


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
    anchor_scales: Sequence[float] = (8, 16, 32),
    score_thresh: float = 1e-3,
    nms_thresh: float = 0.3,
    detections_per_image: int = 300,
    **options: Unpack[BackboneOptions],
) -> FasterRCNN:
    """Faster R-CNN with a head of two fully connected layers (Dai et al. 2017, section 2.3, and the authors' code).

    Images, targets and results follow torchvision's conventions. `images` is a list of `Tensor[3, H, W]` in 0..1,
    `targets` a list of dicts with `boxes`, float `[L, 4]` (x0, y0, x1, y1) in pixels, and `labels`, int64 `[L]`, from 1
    to `num_classes - 1`. The network returns a dict of losses in training, and a list of dicts with `boxes`, `labels`
    and `scores` in evaluation.

    Args:
        num_classes: number of classes, background included.
        backbone, deform_layers: see `pliant.backbones.backbone`.
        deform_roi: whether RoI pooling is deformable.
        sampling: sampling of the RoI pooling, `"paper"` or `"authors"`, see `pliant.ops.roi_pool`. The authors' plain
            network takes the maximum of a bin instead of the average.
        framing: `"paper"` pads images to a multiple of 16 and uses continuous box edges; `"authors"` reproduces the
            authors' code to the pixel, which weights trained by them need.
        background_iou: RoIs whose IoU with every object is lower are ignored in training.
        min_size: target length of the short side, in pixels.
        max_size: upper limit of the long side, in pixels; takes precedence over `min_size`.
        anchor_scales: square roots of the anchors' areas, in multiples of 16 pixels; the aspect ratios are 1:2, 1:1,
            2:1.
        score_thresh: detections must score higher.
        nms_thresh: IoU above which non-maximum suppression removes a detection.
        detections_per_image: maximum number of detections per image.
        options: `weights`, `dilation` and other arguments of `pliant.backbones.backbone`.

    Raises:
        ValueError: if an argument is out of its range, or the backbone cannot have these layers.

    Examples:
        >>> model = pliant.models.faster_rcnn(num_classes=3, backbone="timm/test_resnet", min_size=64, max_size=64)
        >>> images = [torch.rand(3, 64, 64)]
        >>> targets = [{"boxes": torch.tensor([[5.0, 5.0, 30.0, 40.0]]), "labels": torch.tensor([1])}]
        >>> sorted(model(images, targets))
        ['loss_box_reg', 'loss_classifier', 'loss_objectness', 'loss_rpn_box_reg']
        >>> detections = model.eval()(images)
        >>> sorted(detections[0])
        ['boxes', 'labels', 'scores']
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
    """Reduces conv5 by a 1x1 convolution and pools it at the RoIs, in place of the pooler of torchvision's heads."""

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
    """Boxes per image, or `[R, 5]`, as RoIs for the pooling. The authors' pooling includes the last pixel of a RoI."""
    rois = boxes if isinstance(boxes, Tensor) else convert_boxes_to_roi_format(boxes)
    if sampling == "authors":
        rois = torch.cat((rois[:, :1], inclusive(rois[:, 1:])), dim=1)
    return rois.to(features.dtype)
