"""Non-maximum suppression over a batch as one operator: ONNX's `NonMaxSuppression`."""

from __future__ import annotations

import torch
from torch import Tensor

torch.library.define(
    "pliant::batched_nms", "(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold) -> Tensor"
)


def batched_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """The boxes that non-maximum suppression keeps, for each class of each image.

    Unlike `torchvision.ops.batched_nms` it does not shift boxes by class, so no precision is lost.

    Args:
        boxes: `[B, P, 4]`, (x0, y0, x1, y1).
        scores: `[B, C, P]`: each class of each image is suppressed on its own, over the same boxes.
        iou_threshold: a box that overlaps a better one by more than this is dropped.
        score_threshold: boxes whose score is not above this are dropped.

    Returns:
        Bool `[B, C, P]`, true where a box is kept.
    """
    which = torch.ops.pliant.batched_nms(boxes, scores, iou_threshold, score_threshold)
    kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return kept.index_put((which[:, 0], which[:, 1], which[:, 2]), kept.new_ones(()))


@torch.library.impl("pliant::batched_nms", "default")
def _batched_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """Indices `[K, 3]` of batch entry, class and box, as ONNX's NonMaxSuppression returns them."""
    from torchvision.ops import nms  # here, so that importing Pliant does not import torchvision

    found = [torch.zeros(0, 3, dtype=torch.int64, device=boxes.device)]
    for entry in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            listed = torch.where(scores[entry, kind] > score_threshold)[0]
            left = listed[nms(boxes[entry, listed], scores[entry, kind, listed], iou_threshold)]
            where = left.new_tensor([entry, kind]).expand(len(left), 2)
            found.append(torch.cat((where, left[:, None]), dim=1))
    return torch.cat(found)


@torch.library.register_fake("pliant::batched_nms")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)
