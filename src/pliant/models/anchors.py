"""Anchors of the paper's detectors: their shapes, where they stand, and the objects they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

STRIDE = 16
RATIOS = (0.5, 1.0, 2.0)


class Anchors(AnchorGenerator):
    """Faster R-CNN's anchors on one map of stride 16, each centred on its cell.

    The square of one cell is stretched to each ratio (height over width) in whole pixels, then scaled: 23 x 12,
    16 x 16 and 11 x 22 pixels times 8, 16 and 32.

    Args:
        scales: square roots of the anchors' areas, in multiples of 16 pixels.
    """

    def __init__(self, scales: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__((tuple(scales),), (RATIOS,))

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> Tensor:
        """The anchors of the first cell, `[ratios * scales, 4]`, ratio by ratio."""
        ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device)
        width = (STRIDE**2 / ratios).sqrt().round()
        sides = torch.stack((width, (width * ratios).round()), dim=1)  # [ratios, x | y]
        half = torch.as_tensor(scales, dtype=dtype, device=device)[:, None] * sides[:, None] / 2
        return torch.cat((STRIDE / 2 - half, STRIDE / 2 + half), dim=2).flatten(0, 1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return [self.on(feature_maps[0])] * len(image_list.image_sizes)

    def on(self, feature: Tensor) -> Tensor:
        """The anchors of a map `[N, C, H, W]`: `[H * W * A, 4]`, row by row, those of a cell together."""
        self.set_cell_anchors(feature.dtype, feature.device)
        stride = torch.tensor(STRIDE, device=feature.device)
        return self.grid_anchors([list(feature.shape[-2:])], [[stride, stride]])[0]


def assign(
    anchors: Tensor,
    target: dict[str, Tensor],
    size: tuple[int, int],
    *,
    foreground: float = 0.7,
    background: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """What each anchor stands for in training (Ren et al. 2015, section 3.1.2).

    Anchors that cross the image's border stand for nothing. Of the others, those that overlap an object by
    `foreground` or more stand for it, and so does the best one of every object.

    Args:
        anchors: `[A, 4]`.
        target: `boxes` `[L, 4]` and `labels` `[L]`, from 1 on.
        size: height and width of the image.
        foreground: the least IoU with an object to stand for it.
        background: anchors whose IoU with every object is below are background.

    Returns:
        Labels `[A]`, 0 for background and -1 for nothing, and the box of each anchor's object `[A, 4]`.
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
