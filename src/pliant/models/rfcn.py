"""R-FCN of the paper: position-sensitive score and box maps on conv5, with plain or deformable pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from pliant.backbones import BackboneOptions
from pliant.backbones import backbone as build_backbone
from pliant.models.anchors import STRIDE
from pliant.models.detector import Detector, arguments, start
from pliant.models.faster_rcnn import rois_of
from pliant.models.hub import builds
from pliant.models.roi_heads import BoxHead
from pliant.models.rpn import Conv4RPN
from pliant.models.transform import image_transform
from pliant.nn import DeformPSRoIPool, PSRoIPool


class RFCN(Detector):
    """R-FCN, as built by `rfcn`. The arguments that built it are in `config`.

    Examples:
        >>> model = pliant.models.rfcn(num_classes=3, backbone="timm/test_resnet")
        >>> model.config["num_classes"]
        3
        >>> model.save_pretrained("folder")
        >>> model = type(model).from_pretrained("folder")
    """


@builds(RFCN)
def rfcn(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    deform_layers: int = 3,
    deform_roi: bool = True,
    sampling: str = "paper",
    framing: str = "paper",
    bins: int = 7,
    hardest: bool = True,
    min_size: int = 600,
    max_size: int = 1000,
    anchor_scales: Sequence[float] = (8, 16, 32),
    score_thresh: float = 1e-3,
    nms_thresh: float = 0.3,
    detections_per_image: int = 300,
    **options: Unpack[BackboneOptions],
) -> RFCN:
    """R-FCN (Dai et al. 2016), deformable as in Dai et al. (2017), section 2.3 and figure 4.

    A 1x1 convolution reduces conv5 to 1024 channels. From these come k x k score maps for each class and k x k box maps
    shared by all classes. The scores and box of a RoI are the means of its bins. The offsets of the bins are
    class-aware for scores and class-agnostic for boxes. Images, targets and results are those of
    `pliant.models.faster_rcnn`.

    Args:
        num_classes: number of classes, background included.
        backbone, deform_layers: see `pliant.backbones.backbone`.
        deform_roi: whether position-sensitive RoI pooling is deformable.
        sampling, framing: see `pliant.models.faster_rcnn`.
        bins: number of bins k on each side of a RoI.
        hardest: whether to train on the 128 RoIs of an image with the largest loss, instead of 128 random ones.
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
        >>> model = pliant.models.rfcn(num_classes=3, backbone="timm/test_resnet", min_size=64, max_size=64)
        >>> images = [torch.rand(3, 64, 64)]
        >>> targets = [{"boxes": torch.tensor([[5.0, 5.0, 30.0, 40.0]]), "labels": torch.tensor([1])}]
        >>> sorted(model(images, targets))
        ['loss_box_reg', 'loss_classifier', 'loss_objectness', 'loss_rpn_box_reg']
    """
    config = arguments(locals(), options)
    body = build_backbone(backbone, deform_layers=deform_layers, **options)
    maps = PositionSensitiveMaps(body.conv5_channels, num_classes, bins, deform=deform_roi, sampling=sampling)
    heads = BoxHead(
        maps,
        nn.Identity(),
        Vote(),
        num_classes=num_classes,
        hardest=hardest,
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_image=detections_per_image,
    )
    rpn = Conv4RPN(body.conv4_channels, anchor_scales, framing)
    for module in (rpn, maps.reduce, maps.scores, maps.boxes):
        module.apply(start)
    transform = image_transform(framing, min_size, max_size, body.image_mean, body.image_std, STRIDE)
    return RFCN(body, rpn, heads, transform, config)


class PositionSensitiveMaps(nn.Module):
    """The bins of RoIs: scores `[R, C, k, k]`, and boxes `[R, 8, k, k]` (background, object)."""

    def __init__(self, in_channels: int, num_classes: int, bins: int, *, deform: bool, sampling: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, 1024, 1)
        self.scores = nn.Conv2d(1024, num_classes * bins**2, 1)
        self.boxes = nn.Conv2d(1024, 8 * bins**2, 1)
        self.sampling = sampling
        self.score_pool: DeformPSRoIPool | PSRoIPool
        self.box_pool: DeformPSRoIPool | PSRoIPool
        if deform:
            self.score_pool = DeformPSRoIPool(1024, bins, 1 / STRIDE, num_classes, sampling=sampling)
            self.box_pool = DeformPSRoIPool(1024, bins, 1 / STRIDE, sampling=sampling)
        else:
            self.score_pool = PSRoIPool(bins, 1 / STRIDE, sampling)
            self.box_pool = PSRoIPool(bins, 1 / STRIDE, sampling)

    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor] | Tensor, image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        reduced = F.relu(self.reduce(features["conv5"]))
        rois = rois_of(boxes, reduced, self.sampling)
        scores = _pool(self.score_pool, self.scores(reduced), reduced, rois)
        return scores, _pool(self.box_pool, self.boxes(reduced), reduced, rois)


class Vote(nn.Module):
    """Scores `[R, C]` and boxes `[R, 8]` of RoIs, the means of their bins."""

    def forward(self, bins: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scores, boxes = bins
        return scores.mean(dim=(2, 3)), boxes.mean(dim=(2, 3))


def _pool(pool: DeformPSRoIPool | PSRoIPool, maps: Tensor, features: Tensor, rois: Tensor) -> Tensor:
    return pool(maps, features, rois) if isinstance(pool, DeformPSRoIPool) else pool(maps, rois)
