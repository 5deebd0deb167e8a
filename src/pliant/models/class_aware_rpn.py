"""Class-aware RPN of the paper: a one-stage detector in which the RPN predicts classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from pliant import distributed
from pliant.backbones import BackboneOptions
from pliant.backbones import backbone as build_backbone
from pliant.models.anchors import STRIDE, Anchors, assign
from pliant.models.box_sampler import BoxSampler
from pliant.models.detector import Detector, arguments, start
from pliant.models.hub import builds
from pliant.models.transform import image_transform


class ClassAwareRPN(Detector):
    """Class-aware RPN, as built by `class_aware_rpn`. The arguments that built it are in `config`.

    Examples:
        >>> model = pliant.models.class_aware_rpn(num_classes=3, backbone="timm/test_resnet")
        >>> model.config["num_classes"]
        3
        >>> model.save_pretrained("folder")
        >>> model = type(model).from_pretrained("folder")
    """


@builds(ClassAwareRPN)
def class_aware_rpn(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    deform_layers: int = 3,
    hidden: bool = True,
    min_size: int = 600,
    max_size: int = 1000,
    anchor_scales: Sequence[float] = (8, 16, 32),
    score_thresh: float = 1e-3,
    nms_thresh: float = 0.3,
    detections_per_image: int = 300,
    **options: Unpack[BackboneOptions],
) -> ClassAwareRPN:
    """RPN with a classifier of C classes instead of two (Dai et al. 2017, section 2.3), "a simplified SSD".

    The paper gives no further details. Here the head is on conv5 reduced to 1024 channels, because the paper's
    deformable layers change its results; all classes share a box; anchors and their assignment are those of the RPN.
    Images, targets and results are those of `pliant.models.faster_rcnn`.

    Args:
        num_classes: number of classes, background included.
        backbone, deform_layers: see `pliant.backbones.backbone`.
        hidden: whether the outputs follow the RPN's 3x3 convolution to 512 channels, or directly the 1024 channels.
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
        >>> model = pliant.models.class_aware_rpn(num_classes=3, backbone="timm/test_resnet", min_size=64, max_size=64)
        >>> images = [torch.rand(3, 64, 64)]
        >>> targets = [{"boxes": torch.tensor([[5.0, 5.0, 30.0, 40.0]]), "labels": torch.tensor([1])}]
        >>> sorted(model(images, targets))
        ['loss_box_reg', 'loss_classifier']
    """
    config = arguments(locals(), options)
    body = build_backbone(backbone, deform_layers=deform_layers, **options)
    head = DenseHead(
        body.conv5_channels,
        num_classes,
        anchor_scales,
        hidden=hidden,
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_image=detections_per_image,
    )
    head.apply(start)
    transform = image_transform("paper", min_size, max_size, body.image_mean, body.image_std, STRIDE)
    return ClassAwareRPN(body, NoProposals(), head, transform, config)


class NoProposals(nn.Module):
    """Takes the place of the RPN in a detector without one."""

    def forward(
        self, images: object, features: object, targets: object = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return [], {}


class DenseHead(nn.Module):
    """Classes and boxes of all anchors on conv5, called like torchvision's `RoIHeads` but without proposals.

    Args:
        in_channels: channels of conv5.
        num_classes: number of classes C, background included.
        anchor_scales: see `Anchors`.
        hidden, score_thresh, nms_thresh, detections_per_image: see `class_aware_rpn`.
        candidates: maximum number of pairs of anchor and class that enter NMS, best first.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        anchor_scales: Sequence[float],
        *,
        hidden: bool,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
        candidates: int = 6000,
    ) -> None:
        super().__init__()
        self.anchors = Anchors(anchor_scales)
        count = self.anchors.num_anchors_per_location()[0]
        self.reduce = nn.Conv2d(in_channels, 1024, 1)
        self.hidden = nn.Conv2d(1024, 512, 3, padding=1) if hidden else None
        width = 512 if hidden else 1024
        self.scores = nn.Conv2d(width, count * num_classes, 1)
        self.boxes = nn.Conv2d(width, count * 4, 1)
        self.num_classes = num_classes
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_image
        self.candidates = candidates
        self.sampler = BoxSampler(256, 0.5)
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        scores, deltas, anchors = self.outputs(features)
        if not self.training:
            each = zip(scores.softmax(dim=2), deltas, image_shapes, strict=True)
            return [self._detect(score, delta, anchors, size) for score, delta, size in each], {}
        if targets is None:
            raise ValueError("targets are needed in training, got None")
        return [], self._losses(scores, deltas, anchors, targets, image_shapes)

    def outputs(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores `[N, A, C]`, boxes relative to the anchors `[N, A, 4]`, and the anchors `[A, 4]`."""
        x = F.relu(self.reduce(features["conv5"]))
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        return _by_anchor(self.scores(x), self.num_classes), _by_anchor(self.boxes(x), 4), self.anchors.on(x)

    def _losses(
        self,
        scores: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        targets: list[dict[str, Tensor]],
        sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        assigned = [assign(anchors, target, size) for target, size in zip(targets, sizes, strict=True)]
        positive, negative = (torch.stack(chosen).bool() for chosen in self.sampler([label for label, _ in assigned]))
        labels = torch.stack([label for label, _ in assigned])
        goals = torch.stack(self.box_coder.encode([box for _, box in assigned], [anchors] * len(targets)))
        sampled = positive | negative
        count = distributed.mean(sampled.sum()).clamp(min=1)
        classified = F.cross_entropy(scores[sampled], labels[sampled], reduction="sum")
        placed = F.smooth_l1_loss(deltas[positive], goals[positive], beta=1 / 9, reduction="sum")
        return {"loss_classifier": classified / count, "loss_box_reg": placed / count}

    def _detect(self, scores: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        pairs = scores[:, 1:].flatten()
        best = pairs.topk(min(self.candidates, len(pairs))).indices
        best = best[pairs[best] > self.score_thresh]
        score, which, label = pairs[best], best // (self.num_classes - 1), best % (self.num_classes - 1) + 1
        box = clip_boxes_to_image(self.box_coder.decode_single(deltas[which], anchors[which]), size)
        keep = batched_nms(box, score, label, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": box[keep], "labels": label[keep], "scores": score[keep]}


def _by_anchor(map: Tensor, numbers: int) -> Tensor:
    """`[N, A * numbers, H, W]` as `[N, H * W * A, numbers]`."""
    return map.view(map.shape[0], -1, numbers, *map.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)
