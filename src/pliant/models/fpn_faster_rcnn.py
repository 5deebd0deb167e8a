"""Faster R-CNN with a feature pyramid and deformable conv3 to conv5, the detector most people train today."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_area, roi_align
from torchvision.ops._utils import convert_boxes_to_roi_format
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pliant.backbones.pyramid import STRIDES, Pyramid
from pliant.backbones.pyramid import pyramid as build_pyramid
from pliant.models.box_sampler import BoxSampler
from pliant.models.detector import arguments
from pliant.models.hub import OnHub, builds
from pliant.models.roi_heads import PoolingHeads
from pliant.models.targets import ChecksTargets

CHANNELS = 256


class FPNFasterRCNN(ChecksTargets, TorchvisionFasterRCNN, OnHub):
    """Faster R-CNN with a feature pyramid, as built by `fpn_faster_rcnn`. The arguments that built it are in `config`.

    Examples:
        >>> model = pliant.models.fpn_faster_rcnn(num_classes=3, backbone="timm/test_resnet")
        >>> model.config["num_classes"]
        3
        >>> model.save_pretrained("folder")
        >>> model = type(model).from_pretrained("folder")
    """

    config: dict[str, Any]


@builds(FPNFasterRCNN)
def fpn_faster_rcnn(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    weights: str | Path | None = None,
    frozen: bool = True,
    deform_stages: int = 3,
    padded_pool: bool = False,
    offset_groups: int = 1,
    modulated: bool = False,
    border: str = "paper",
    min_size: int = 800,
    max_size: int = 1333,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_image: int = 100,
) -> FPNFasterRCNN:
    """Faster R-CNN with a feature pyramid (Lin et al. 2017) and deformable stages (Zhu et al. 2019).

    This is torchvision's detector with aligned RoI pooling and anchors of exact strides, as in mmdetection, whose
    checkpoints it can run. Images, targets and results are those of `pliant.models.faster_rcnn`.

    Args:
        num_classes: number of classes, background included.
        backbone, weights, frozen, deform_stages, padded_pool, offset_groups, modulated, border: see
            `pliant.backbones.pyramid.pyramid`.
        min_size: target length of the short side, in pixels.
        max_size: upper limit of the long side, in pixels; takes precedence over `min_size`.
        score_thresh: detections must score higher.
        nms_thresh: IoU above which non-maximum suppression removes a detection.
        detections_per_image: maximum number of detections per image.

    Raises:
        ValueError: if an argument is out of its range, or the backbone cannot have these layers.

    Examples:
        >>> model = pliant.models.fpn_faster_rcnn(num_classes=3, backbone="timm/test_resnet", min_size=64, max_size=64)
        >>> images = [torch.rand(3, 64, 64)]
        >>> targets = [{"boxes": torch.tensor([[5.0, 5.0, 30.0, 40.0]]), "labels": torch.tensor([1])}]
        >>> sorted(model(images, targets))
        ['loss_box_reg', 'loss_classifier', 'loss_objectness', 'loss_rpn_box_reg']
    """
    config = arguments(locals())
    body = build_pyramid(
        backbone,
        weights=weights,
        frozen=frozen,
        deform_stages=deform_stages,
        padded_pool=padded_pool,
        offset_groups=offset_groups,
        modulated=modulated,
        border=border,
    )
    model = FPNFasterRCNN(
        PyramidBackbone(body),
        num_classes,
        min_size=min_size,
        max_size=max_size,
        image_mean=list(body.image_mean),
        image_std=list(body.image_std),
        rpn_anchor_generator=PyramidAnchors(),
        box_roi_pool=PyramidRoIAlign(7),
    )
    model.rpn.fg_bg_sampler = BoxSampler(256, 0.5)
    model.roi_heads = PoolingHeads(
        model.roi_heads.box_roi_pool,
        model.roi_heads.box_head,
        model.roi_heads.box_predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=512,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_image,
    )
    model.roi_heads.fg_bg_sampler = BoxSampler(512, 0.25)
    model.config = config
    return model


class PyramidBackbone(nn.Module):
    """Maps of stride 4 to 64 with 256 channels each, named as in torchvision's `BackboneWithFPN`."""

    out_channels = CHANNELS

    def __init__(self, body: Pyramid) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.channels), CHANNELS, LastLevelMaxPool())

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(self.body(x))


class PyramidAnchors(AnchorGenerator):
    """Anchors of 8 times the stride on every level, in three aspect ratios, not rounded to pixels.

    torchvision computes the stride as image size over map size, which gives 61 instead of 64 on the last level.
    """

    strides = (*STRIDES, 2 * STRIDES[-1])

    def __init__(self) -> None:
        super().__init__(tuple((8 * stride,) for stride in self.strides), ((0.5, 1.0, 2.0),) * len(self.strides))

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        """The anchors `[ratios * scales, 4]` of one cell around the origin, ordered by ratio."""
        side = torch.as_tensor(scales, dtype=dtype, device=device)
        stretch = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        half = torch.stack((side / stretch, side * stretch), dim=2).flatten(0, 1) / 2
        return torch.cat((-half, half), dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        first = feature_maps[0]
        self.set_cell_anchors(first.dtype, first.device)
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(map.shape[-2:]) for map in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class PyramidRoIAlign(MultiScaleRoIAlign):
    """RoIAlign on the level of stride 4 to 32 that fits the size of a RoI (Lin et al. 2017, equation 1).

    torchvision's, with `aligned=True` and one sample per cell of a bin.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__([str(level) for level in range(len(STRIDES))], output_size, sampling_ratio=-1)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor] | Tensor, image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        maps = [x[name] for name in self.featmap_names]
        rois = boxes if isinstance(boxes, Tensor) else convert_boxes_to_roi_format(boxes)
        levels = (box_area(rois[:, 1:]).sqrt() / (14 * STRIDES[0]) + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1)
        pooled = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], *self.output_size)
        for level, (map, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            chosen = torch.where(levels == level)[0]
            parts = roi_align(map, rois[chosen].to(map.dtype), self.output_size, 1 / stride, -1, aligned=True)
            pooled = pooled.index_put((chosen,), parts)
        return pooled
