"""The second stage of the paper's detectors: selection of RoIs, losses and detections."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou

from pliant import distributed
from pliant.models.box_sampler import BoxSampler


class PoolingHeads(RoIHeads):
    """torchvision's heads, in which a RoI that reads nothing is background.

    The pooled features of a RoI are zero if it lies outside the map, or if its bins moved outside. The following layers
    would then score the RoI without seeing the image; in R-FCN all classes would get the same score.
    """

    def outputs(
        self, features: dict[str, Tensor], proposals: list[Tensor] | Tensor, image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Scores and boxes of RoIs in evaluation.

        Args:
            features: maps of the backbone by name.
            proposals: boxes `[L, 4]` per image, or `[R, 5]` with the image index first.
            image_shapes: height and width of each image.

        Returns:
            Scores `[R, C]` before softmax, and boxes as the predictor returns them. Where all features of a class are
            zero, its score is minus infinity, except for the background.
        """
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        scores, boxes = self.box_predictor(self.box_head(pooled))
        of_classes = pooled[0] if isinstance(pooled, tuple) else pooled.unsqueeze(1)  # [R, C, ...], or one for all
        nothing = (of_classes == 0).flatten(2).all(dim=2)
        objects = torch.arange(scores.shape[1], device=scores.device) > 0
        return scores.masked_fill(nothing & objects, -float("inf")), boxes

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if self.training:
            return super().forward(features, proposals, image_shapes, targets)
        found = self.postprocess_detections(*self.outputs(features, proposals, image_shapes), proposals, image_shapes)
        return [dict(zip(("boxes", "scores", "labels"), image, strict=True)) for image in zip(*found, strict=True)], {}


class BoxHead(PoolingHeads):
    """torchvision's heads with the authors' losses, online hard example mining, and boxes shared by all classes.

    RoIs whose IoU with an object is at least a half are trained as that object. By default 128 RoIs of an image are
    drawn, a quarter of them objects. With `hardest` the loss is computed for all RoIs and the 128 largest count
    (Shrivastava et al. 2016).

    Args:
        box_roi_pool, box_head, box_predictor: modules that are called in this order. The first takes features, boxes
            and image sizes and returns features `[R, ...]`, or a tuple that begins with the score bins `[R, C, k, k]`.
            The last returns scores `[R, C]` and boxes, either `[R, 4 * C]`, background first, or `[R, 8]` if all
            classes share them.
        num_classes: number of classes C, background included.
        hardest: whether RoIs are selected by their loss.
        background_iou: RoIs whose IoU with every object is lower are ignored in training.
        score_thresh: detections must score higher.
        nms_thresh: IoU above which non-maximum suppression removes a detection.
        detections_per_image: maximum number of detections per image.
    """

    def __init__(
        self,
        box_roi_pool: Any,
        box_head: Any,
        box_predictor: Any,
        *,
        num_classes: int,
        hardest: bool = False,
        background_iou: float = 0.0,
        score_thresh: float,
        nms_thresh: float,
        detections_per_image: int,
    ) -> None:
        super().__init__(
            box_roi_pool,
            box_head,
            box_predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=128,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            detections_per_img=detections_per_image,
        )
        self.fg_bg_sampler = BoxSampler(128, 0.25)
        self.num_classes = num_classes
        self.hardest = hardest
        self.background_iou = background_iou

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        rois, _, labels, goals = self.select_training_samples(proposals, targets)
        scores, boxes = self.box_predictor(self.box_head(self.box_roi_pool(features, rois, image_shapes)))
        classified, placed = _roi_losses(scores, boxes, torch.cat(labels), torch.cat(goals))
        if self.hardest:
            chosen = self._hardest((classified + placed).detach(), [len(roi) for roi in rois])
            classified, placed = classified[chosen], placed[chosen]
        count = distributed.mean(torch.tensor(len(classified), device=classified.device)).clamp(min=1)
        return [], {"loss_classifier": classified.sum() / count, "loss_box_reg": placed.sum() / count}

    def _hardest(self, loss: Tensor, counts: list[int]) -> Tensor:
        most, chosen, first = self.fg_bg_sampler.batch_size_per_image, [], 0
        for of_image in loss.split(counts):
            chosen.append(first + of_image.topk(min(most, len(of_image))).indices)
            first += len(of_image)
        return torch.cat(chosen)

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        if self.hardest:
            return [torch.where(label >= 0)[0] for label in labels]
        return super().subsample(labels)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for rois, boxes, label in zip(proposals, gt_boxes, labels, strict=True):
            if self.background_iou > 0 and len(boxes):
                label[box_iou(boxes, rois).amax(dim=0) < self.background_iou] = -1
        return matched, labels

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return super().postprocess_detections(
            class_logits, for_classes(box_regression, self.num_classes).flatten(1), proposals, image_shapes
        )


def for_classes(boxes: Tensor, num_classes: int) -> Tensor:
    """Boxes `[R, 4 * C]` or `[R, 8]` as `[R, C, 4]`."""
    by_class = boxes.view(boxes.shape[0], boxes.shape[1] // 4, 4)
    return by_class if by_class.shape[1] == num_classes else by_class[:, 1:].expand(-1, num_classes, -1)


def _roi_losses(scores: Tensor, boxes: Tensor, labels: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of each RoI, `[R]` each: cross entropy, and smooth L1 of the four coordinates of an object."""
    objects = torch.where(labels > 0)[0]
    own = for_classes(boxes, scores.shape[1])[objects, labels[objects]]
    placed = F.smooth_l1_loss(own, goals[objects], reduction="none").sum(dim=1)
    classified = F.cross_entropy(scores, labels, reduction="none")
    return classified, torch.zeros_like(classified).index_put((objects,), placed.to(classified.dtype))
