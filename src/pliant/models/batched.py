"""Detectors as functions of tensors, without lists or loops over images, for `torch.export` and ONNX."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from pliant.models.class_aware_rpn import DenseHead
from pliant.models.roi_heads import for_classes
from pliant.models.rpn import Conv4RPN
from pliant.ops.batched_nms import batched_nms


class _Candidates(NamedTuple):
    """The boxes that enter the final selection, all classes of an image concatenated."""

    boxes: Tensor  # [N, M, 4]
    labels: Tensor  # [N, M]
    scores: Tensor  # [N, M], negative for unused entries


class BatchedDetector(nn.Module):
    """A detector of `pliant.models` for a batch of images of one size, with the same detections.

    The caller scales the images to the size at which the network runs. Smaller images are at the top left of the batch,
    and `sizes` holds their sizes.

    Args:
        detector: a detector in evaluation mode. It is shared, not copied.

    Shape:
        - Input: images `[N, 3, H, W]` in 0..1, and sizes `[N, 2]` (height, width), int64
        - Output: boxes `[N, D, 4]` in pixels, labels `[N, D]`, int64, and scores `[N, D]`, in order of score. D is the
          detector's `detections_per_image`. Unused entries have label 0 and score 0.

    Raises:
        ValueError: if the detector is in training mode.

    Examples:
        >>> detector = pliant.models.rfcn(num_classes=3, backbone="timm/test_resnet", min_size=64, max_size=64).eval()
        >>> batched = pliant.models.BatchedDetector(detector)
        >>> boxes, labels, scores = batched(torch.rand(2, 3, 64, 64), torch.tensor([[64, 64], [48, 64]]))
        >>> boxes.shape, labels.shape, scores.shape
        (torch.Size([2, 300, 4]), torch.Size([2, 300]), torch.Size([2, 300]))
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, detector: GeneralizedRCNN) -> None:
        super().__init__()
        if detector.training:
            raise ValueError("the detector is in training mode: call eval() first")
        self.detector = detector
        self.multiple = detector.transform.size_divisible
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(detector.transform, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = images.shape[2:]
        x = (images - self.image_mean) / self.image_std * _inside(height, width, sizes)[:, None]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self.detector.backbone(x)
        heads = self.detector.roi_heads
        found = (
            self._dense(heads, features, sizes) if isinstance(heads, DenseHead) else self._two(heads, features, sizes)
        )
        return _best(found, heads.detections_per_img)

    def _dense(self, heads: DenseHead, features: dict[str, Tensor], sizes: Tensor) -> _Candidates:
        scores, deltas, anchors = heads.outputs(features)
        classes = heads.num_classes - 1
        scores, best = _top(scores.softmax(dim=2)[:, :, 1:].flatten(1), heads.candidates)
        which, kind = best // classes, best % classes  # [N, P]
        boxes = heads.box_coder.decode_single(_chosen(deltas, which).flatten(0, 1), anchors[which.flatten()])
        boxes = _clipped(boxes.view(*which.shape, 4), sizes)
        lists = torch.arange(classes, device=kind.device).view(1, -1, 1) == kind[:, None]  # [N, C, P]
        kept = batched_nms(boxes, torch.where(lists, scores[:, None], -1.0), heads.nms_thresh, heads.score_thresh)
        return _Candidates(boxes, kind + 1, torch.where(kept.any(dim=1), scores, -1.0))

    def _two(self, heads: Any, features: dict[str, Tensor], sizes: Tensor) -> _Candidates:
        proposals, objectness = self._proposals(features, sizes)
        count, per_image = objectness.shape
        image = torch.arange(count, device=sizes.device, dtype=proposals.dtype).repeat_interleave(per_image)
        rois = torch.cat((image[:, None], proposals.flatten(0, 1)), dim=1)
        scores, deltas = heads.outputs(features, rois, [])
        classes = scores.shape[1]
        deltas = for_classes(deltas, classes).flatten(1)
        boxes = heads.box_coder.decode_single(deltas, rois[:, 1:]).view(count, per_image, classes, 4)
        boxes = _clipped(boxes, sizes)[:, :, 1:].transpose(1, 2)  # [N, C, R, 4]
        scores = scores.softmax(dim=1).view(count, per_image, classes)[:, :, 1:].transpose(1, 2)  # [N, C, R]
        scores = torch.where((objectness >= 0)[:, None] & _large(boxes, 1e-2), scores, -1.0)
        kept = batched_nms(boxes.flatten(0, 1), scores.reshape(-1, 1, per_image), heads.nms_thresh, heads.score_thresh)
        scores = torch.where(kept.view(scores.shape), scores, -1.0)
        labels = torch.arange(1, classes, device=sizes.device).view(1, -1, 1).expand(scores.shape)
        return _Candidates(boxes.flatten(1, 2), labels.flatten(1), scores.flatten(1))

    def _proposals(self, features: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """RoIs `[N, R, 4]` and their probabilities `[N, R]`, negative for unused entries."""
        rpn = self.detector.rpn
        maps = [features["conv4"]] if isinstance(rpn, Conv4RPN) else list(features.values())
        objectness, deltas = rpn.head(maps)
        anchors = rpn.anchor_generator(ImageList(maps[0], [(0, 0)]), maps)[0]
        lengths = [map.shape[1] * map.shape[2] * map.shape[3] for map in objectness]
        flat, deltas = concat_box_prediction_layers(objectness, deltas)
        count = maps[0].shape[0]
        scores, deltas = flat.view(count, -1), deltas.view(count, -1, 4)
        levels, kept, values, first = [], [], [], 0
        for level, length in enumerate(lengths):
            value, best = _top(scores[:, first : first + length], rpn.pre_nms_top_n())
            values.append(value)
            kept.append(best + first)
            levels.append(torch.full_like(best, level))
            first += length
        scores, which, level_of = (torch.cat(parts, dim=1) for parts in (values, kept, levels))  # [N, P] each
        boxes = rpn.box_coder.decode_single(_chosen(deltas, which).flatten(0, 1), anchors[which.flatten()])
        boxes = boxes.view(*which.shape, 4)
        if isinstance(rpn, Conv4RPN):
            boxes = rpn.framed(boxes, which, maps[0], sizes)
        boxes = _clipped(boxes, sizes)
        real = _large(boxes, rpn.min_size) & (scores > -float("inf"))
        probability = torch.where(real, scores.sigmoid(), -2.0)
        lists = torch.arange(len(lengths), device=sizes.device).view(1, -1, 1) == level_of[:, None]  # [N, L, P]
        of_lists = torch.where(lists, probability[:, None], -2.0)
        left = batched_nms(boxes, of_lists, rpn.nms_thresh, -1.0).any(dim=1)
        best_scores, best = _top(torch.where(left, probability, -2.0), rpn.post_nms_top_n())
        return _chosen(boxes, best), best_scores


def _best(found: _Candidates, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of each image; unused entries are zero if there are fewer than `most`."""
    scores, which = _top(found.scores, most)
    real = scores >= 0
    boxes = torch.where(real[:, :, None], _chosen(found.boxes, which), 0.0)
    return boxes, torch.where(real, found.labels.gather(1, which), 0), scores.clamp(min=0)


def _top(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The best scores of each row of `[N, M]` and their indices; minus infinity, at any index, if there are fewer."""
    best, which = F.pad(scores, (0, most), value=-float("inf")).topk(most, dim=1)
    return best, which.clamp(max=scores.shape[1] - 1)


def _chosen(boxes: Tensor, which: Tensor) -> Tensor:
    """Boxes `[N, M, 4]` at indices `[N, P]`: `[N, P, 4]`."""
    return boxes.gather(1, which[:, :, None].expand(-1, -1, 4))


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes `[N, ..., 4]` to their images."""
    high = sizes.flip(1).repeat(1, 2).to(boxes.dtype)  # [N, 4], width and height, twice
    return boxes.clamp(min=0).minimum(high.view(-1, *(1,) * (boxes.dim() - 2), 4))


def _large(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of boxes `[..., 4]` are at least that long."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(dim=-1)


def _inside(height: int, width: int, sizes: Tensor) -> Tensor:
    """Mask of the images in their batch, `[N, H, W]`."""
    rows, columns = (torch.arange(length, device=sizes.device) for length in (height, width))
    return (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
