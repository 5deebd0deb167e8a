"""Anchors of the paper's detectors: shapes, positions, and the objects assigned to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

STRIDE = 16
RATIOS = (0.5, 1.0, 2.0)


class Anchors(AnchorGenerator):
    """Faster R-CNN's anchors on one map of stride 16, centred on the cells.

    A square of one cell is stretched to each aspect ratio (height over width), rounded to pixels (23 x 12, 16 x 16 and
    11 x 22) and scaled by 8, 16 and 32.

    Args:
        scales: square roots of the anchors' areas, in multiples of 16 pixels.
    """

    def __init__(self, scales: Sequence[float] = (8, 16, 32)) -> None:
        super().__init__((tuple(scales),), (RATIOS,))

    def generate_anchors(
        self,
        scales: list[float],  # type: ignore[override]
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        """The anchors of the first cell `[ratios * scales, 4]`, ordered by ratio."""
        ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device)
        width = (STRIDE**2 / ratios).sqrt().round()
        sides = torch.stack((width, (width * ratios).round()), dim=1)  # [ratios, x | y]
        half = torch.as_tensor(scales, dtype=dtype, device=device)[:, None] * sides[:, None] / 2
        return torch.cat((STRIDE / 2 - half, STRIDE / 2 + half), dim=2).flatten(0, 1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return [self.on(feature_maps[0])] * len(image_list.image_sizes)

    def on(self, feature: Tensor) -> Tensor:
        """The anchors `[H * W * A, 4]` of a map `[N, C, H, W]`, row by row, those of a cell together."""
        self.set_cell_anchors(feature.dtype, feature.device)
        stride = torch.tensor(STRIDE, device=feature.device)
        return self.grid_anchors([list(feature.shape[-2:])], [[stride, stride]])[0]


def fitted_scales(boxes: Tensor, labels: Tensor, number: int = 5) -> tuple[float, ...]:
    """Anchor scales for the objects of a data set.

    The scales are evenly spaced on a logarithmic axis, from the size below which 5 % of the objects lie to the size
    above which 5 % lie. Each class counts equally, so that frequent objects do not take the anchors of rare ones. The
    largest scale is at least twice the smallest. The number of scales does not depend on the data, so the weights of
    a network fit into that of another data set.

    Args:
        boxes: `[L, 4]` with an area above zero, in pixels of the images as the network scales them.
        labels: classes `[L]`.
        number: number of scales.

    Returns:
        The scales in multiples of 16 pixels, as `Anchors` takes them, rising.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 128.0, 128.0]])
        >>> fitted_scales(boxes, torch.tensor([1, 2]), number=3)
        (2.0, 4.0, 8.0)
    """
    if not len(boxes):
        raise ValueError("anchors are determined from boxes, and there are none")
    logs = (boxes[:, 2:] - boxes[:, :2]).double().log().mean(dim=1)  # of the square root of the area
    order = logs.argsort()
    share = 1 / labels.bincount()[labels[order]].double()
    share = share.cumsum(0) / share.sum()
    ends = torch.searchsorted(share, share.new_tensor([0.05, 0.95])).clamp(max=len(order) - 1)
    low, high = logs[order[ends]].tolist()
    middle, half = (low + high) / 2, max(high - low, math.log(2)) / 2
    steps = torch.linspace(middle - half, middle + half, number, dtype=torch.float64)
    return tuple(round(scale, 2) for scale in (steps.exp() / STRIDE).tolist())


def assign(
    anchors: Tensor,
    target: dict[str, Tensor],
    size: tuple[int, int],
    *,
    foreground: float = 0.7,
    background: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Assign objects to anchors for training (Ren et al. 2015, section 3.1.2).

    Anchors that cross the border of the image are ignored. Of the others, those that overlap an object by `foreground`
    or more are assigned to it, and so is the best anchor of every object.

    Args:
        anchors: `[A, 4]`.
        target: `boxes` `[L, 4]` and `labels` `[L]`, from 1.
        size: height and width of the image.
        foreground: IoU from which an anchor is assigned to an object.
        background: IoU with every object below which an anchor is background.

    Returns:
        Labels `[A]`, 0 for background and -1 for ignored, and the box of each anchor's object `[A, 4]`.
    """
    boxes = target["boxes"]
    height, width = size
    inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
    if not len(boxes):
        return inside.long() - 1, torch.zeros_like(anchors)
    overlap = box_iou(boxes, anchors).masked_fill(~inside, -1)  # [L, A]
    best, which = overlap.max(dim=0)
    labels = torch.full_like(which, -1)
    labels[inside & (best < background)] = 0
    of_object = overlap.max(dim=1, keepdim=True).values
    closest = ((overlap == of_object) & (of_object > 0)).any(dim=0)
    chosen = inside & (closest | (best >= foreground))
    labels[chosen] = target["labels"][which[chosen]]
    return labels, boxes[which]
