"""What is done at test time beyond one pass: several scales, mirrored images, box averaging, soft-NMS."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, box_iou

PAPER_SCALES = (480, 576, 688, 864, 1200, 1400)
"""The short sides in pixels at which the paper tests on COCO (Dai et al. 2017, section 4.3)."""
PAPER_SIDE = 600
"""The short side in pixels at which the paper trains these networks."""

# The most boxes, best first, that one pass gives to what chooses among those of all passes.
_CANDIDATES = 6000

Detections = dict[str, Tensor]


@dataclass(frozen=True)
class Procedure:
    """How a trained network is used on an image.

    Attributes:
        scales: Short sides in pixels at which the image is seen; none means that of the network.
        flip: Whether the mirrored image is seen as well.
        box_averaging: Whether boxes are refined by a second pass and averaged (detection).
        soft_nms: Whether scores fall where boxes overlap, in place of removing the boxes (detection).
        multi_scale: Whether the image is seen at the paper's six scales, in proportion to the network's own; see `at`.

    Raises:
        ValueError: If a scale is not positive or comes twice.
    """

    scales: tuple[int, ...] = ()
    flip: bool = False
    box_averaging: bool = False
    soft_nms: bool = False
    multi_scale: bool = False

    def __post_init__(self) -> None:
        if any(side < 1 for side in self.scales) or len(set(self.scales)) != len(self.scales):
            raise ValueError(f"scales must be different positive numbers of pixels, got {self.scales}")

    def at(self, short_side: int) -> Procedure:
        """The procedure for a network that sees images at this short side, with the scales of `multi_scale`.

        The paper tests at 480 to 1400 pixels what it trains at 600. A network that is trained at another size is tested
        at sizes in the same proportions, for example at 205 to 597 pixels if it is trained at 256.
        """
        if not self.multi_scale:
            return self
        return replace(self, scales=tuple(round(side * short_side / PAPER_SIDE) for side in PAPER_SCALES))

    @property
    def sides(self) -> tuple[int | None, ...]:
        """The scales; None for that of the network."""
        return self.scales or (None,)

    @property
    def mirrorings(self) -> tuple[bool, ...]:
        """Whether the image is mirrored, for each pass at a scale."""
        return (False, True) if self.flip else (False,)


class AugmentedDetector(nn.Module):
    """A detector under a `Procedure`; called as the detector is, in evaluation.

    Boxes of all passes are put together before NMS, which then runs once over all of them, with the threshold and
    the number of detections that the detector has. A scale's longest side is in proportion to its short side as
    the detector's limits are.

    With box averaging (Gidaris and Komodakis 2015, as He et al. 2016 do it) each pass pools again at the boxes it
    found, which gives new scores and boxes; both join. A box that NMS keeps then becomes the average, weighted by
    score, of all boxes of its class that overlap it by at least half.

    Args:
        model: Of torchvision's convention.
        procedure: What to do.

    Raises:
        TypeError: If the model is no `GeneralizedRCNN`.
        ValueError: If boxes shall be averaged and the model has no second stage to score given boxes with.
    """

    def __init__(self, model: nn.Module, procedure: Procedure) -> None:
        super().__init__()
        if not isinstance(model, GeneralizedRCNN):
            raise TypeError(f"a detector of torchvision's GeneralizedRCNN is needed, got {type(model).__name__}")
        if procedure.box_averaging and not isinstance(model.roi_heads, RoIHeads):
            raise ValueError(
                f"box averaging scores boxes in a second stage, which {type(model).__name__} does not have"
            )
        self.model = model
        self.procedure = procedure
        self.train(model.training)

    def forward(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect.

        Args:
            images: Float [3, H, W] in 0..1 each; they are taken one by one.

        Returns:
            For each image ``boxes`` [K, 4], ``labels`` [K] and ``scores`` [K], best first.
        """
        if self.training:
            raise RuntimeError("a test-time procedure is for evaluation; call eval() first")
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> Detections:
        found = _join(
            [
                self._pass(image, side, mirrored)
                for side in self.procedure.sides
                for mirrored in self.procedure.mirrorings
            ]
        )
        heads = self.model.roi_heads
        boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
        if self.procedure.soft_nms:
            keep, kept_scores = soft_nms(
                boxes, scores, labels, score_threshold=heads.score_thresh, limit=heads.detections_per_img
            )
        else:
            keep = batched_nms(boxes, scores, labels, heads.nms_thresh)[: heads.detections_per_img]
            kept_scores = scores[keep]
        kept = boxes[keep]
        if self.procedure.box_averaging:
            kept = average_boxes(kept, labels[keep], boxes, labels, scores)
        return {"boxes": kept, "labels": labels[keep], "scores": kept_scores}

    def _pass(self, image: Tensor, side: int | None, mirrored: bool) -> Detections:
        """All boxes of one pass before NMS, in the frame of the image."""
        height, width = image.shape[-2:]
        transform = _scaled(self.model.transform, side)
        batch, _ = transform([image.flip(-1) if mirrored else image])
        features = self.model.backbone(batch.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        proposals, _ = self.model.rpn(batch, features)
        found = self._candidates(features, proposals, batch.image_sizes)
        if self.procedure.box_averaging and len(found["boxes"]):
            heads = self.model.roi_heads
            best = batched_nms(found["boxes"], found["scores"], found["labels"], heads.nms_thresh)
            again = [found["boxes"][best[: heads.detections_per_img]]]
            found = _join([found, self._candidates(features, again, batch.image_sizes)])
        found = transform.postprocess([found], batch.image_sizes, [(height, width)])[0]
        if mirrored:
            found["boxes"] = mirror(found["boxes"], width)
        return found

    def _candidates(self, features: Any, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> Detections:
        # No IoU exceeds 1, so nothing is suppressed.
        heads = _altered(self.model.roi_heads, nms_thresh=1.0, detections_per_img=_CANDIDATES)
        return heads(features, proposals, sizes)[0][0]


class AugmentedSegmenter(nn.Module):
    """A segmenter under a `Procedure`: the mean of the probabilities of all passes.

    The image that it is given is resampled to each scale, and the probabilities back to its size.

    Args:
        model: Maps images [N, 3, H, W] to ``{"out": logits [N, C, H, W]}``.
        procedure: What to do.

    Raises:
        ValueError: If it asks for something that is for detection alone.
    """

    def __init__(self, model: nn.Module, procedure: Procedure) -> None:
        super().__init__()
        if procedure.box_averaging or procedure.soft_nms:
            raise ValueError("box averaging and soft-NMS are for detection; segmentation takes scales and flip")
        self.model = model
        self.procedure = procedure
        self.train(model.training)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Segment.

        Args:
            images: Float [N, 3, H, W] in 0..1.

        Returns:
            ``out``: the logarithms of the mean probabilities [N, C, H, W].
        """
        size = images.shape[-2:]
        passes = []
        for side in self.procedure.sides:
            factor = 1.0 if side is None else side / min(size)
            scaled = _resample(images, [max(1, round(factor * length)) for length in size])
            for mirrored in self.procedure.mirrorings:
                logits = self.model(scaled.flip(-1) if mirrored else scaled)["out"]
                passes.append(_resample((logits.flip(-1) if mirrored else logits).float().softmax(dim=1), list(size)))
        mean = torch.stack(passes).mean(dim=0)
        return {"out": mean.clamp(min=torch.finfo(mean.dtype).tiny).log()}


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, sigma: float = 0.6, score_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017, equation 5): the best box is taken, and those it overlaps lose score.

    A score falls by exp(-IoU² / sigma) for each better box of its class.

    Args:
        boxes: [K, 4].
        scores: [K].
        labels: [K].
        sigma: The authors of deformable ConvNets take 0.6.
        score_threshold: Boxes are left out when their scores are not above it.
        limit: The most boxes that are taken, over all classes.

    Returns:
        The positions of those taken and their scores, best first.
    """
    left = scores.clone()
    positions, values = [], []
    for _ in range(min(limit, len(left))):
        value, best = left.max(dim=0)
        if value <= score_threshold:
            break
        positions.append(best)
        values.append(value)
        decay = torch.exp(-box_iou(boxes[best, None], boxes)[0].square() / sigma)  # [K]
        left = torch.where(labels == labels[best], left * decay, left)
        left[best] = -torch.inf
    if not positions:
        return labels.new_zeros(0, dtype=torch.int64), scores[:0]
    return torch.stack(positions), torch.stack(values)


def average_boxes(
    kept: Tensor, kept_labels: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, overlap: float = 0.5
) -> Tensor:
    """The average, weighted by score, of the boxes of a class around each kept one.

    Args:
        kept: [K, 4], some of `boxes`.
        kept_labels: [K].
        boxes: [L, 4].
        labels: [L].
        scores: [L], positive.
        overlap: The least intersection over union with the kept box.

    Returns:
        [K, 4].
    """
    averaged = kept.clone()
    for label in kept_labels.unique():
        mine, around = kept_labels == label, labels == label
        weights = (box_iou(kept[mine], boxes[around]) >= overlap) * scores[around]  # [k, l]
        # Autocast would round the corners to a few bits.
        with torch.autocast(kept.device.type, enabled=False):
            averaged[mine] = weights @ boxes[around] / weights.sum(dim=1, keepdim=True)
    return averaged


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes [K, 4] of an image of that width as they lie when left and right change places."""
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def _join(parts: list[Detections]) -> Detections:
    return {key: torch.cat([part[key] for part in parts]) for key in ("boxes", "labels", "scores")}


def _resample(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", antialias=True)


def _scaled(transform: Any, side: int | None) -> Any:
    """The transform with another short side, and a long side in proportion."""
    if side is None:
        return transform
    return _altered(transform, min_size=(side,), max_size=round(side * transform.max_size / transform.min_size[-1]))


def _altered(module: Any, **values: Any) -> Any:
    """A module of the same weights with other settings; the network's own module is left as it is."""
    altered = copy.copy(module)
    for name, value in values.items():
        setattr(altered, name, value)
    return altered
