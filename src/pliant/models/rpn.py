"""The paper's region proposal network. It is on conv4, which the deformable layers of conv5 do not affect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from pliant import distributed
from pliant.models.anchors import STRIDE, Anchors, assign
from pliant.models.box_sampler import BoxSampler
from pliant.models.transform import check_framing


class RPNHead(nn.Module):
    """The RPN's 3x3 convolution to 512 channels and its two 1x1 outputs."""

    def __init__(self, in_channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 512, 3, padding=1)
        self.cls_logits = nn.Conv2d(512, anchors, 1)
        self.bbox_pred = nn.Conv2d(512, 4 * anchors, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [F.relu(self.conv(feature)) for feature in features]
        return [self.cls_logits(map) for map in hidden], [self.bbox_pred(map) for map in hidden]


class Conv4RPN(RegionProposalNetwork):
    """torchvision's RPN with the authors' numbers: 6000 boxes before and 300 after NMS at 0.7; 256 anchors in the loss.

    Args:
        in_channels: channels of conv4.
        anchor_scales: see `Anchors`.
        framing: `"authors"` leaves out the cells of the map that the image does not fill completely, and clips a box
            outside the image to the pixels at its border.
    """

    def __init__(self, in_channels: int, anchor_scales: Sequence[float], framing: str = "paper") -> None:
        check_framing(framing)
        anchors = Anchors(anchor_scales)
        super().__init__(
            anchors,
            RPNHead(in_channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 6000, "testing": 6000},
            post_nms_top_n={"training": 300, "testing": 300},
            nms_thresh=0.7,
        )
        self.fg_bg_sampler = BoxSampler(256, 0.5)
        self.framing = framing

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        conv4 = features["conv4"]
        objectness, deltas = concat_box_prediction_layers(*self.head([conv4]))  # [N * H * W * A, 1], [..., 4]
        anchors = self.anchor_generator(images, [conv4])
        proposals = self.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        every = torch.arange(proposals.shape[1], device=conv4.device).expand(proposals.shape[:2])
        proposals = self.framed(proposals, every, conv4, torch.tensor(images.image_sizes, device=conv4.device))
        boxes, _ = self.filter_proposals(proposals, objectness, images.image_sizes, [proposals.shape[1]])
        if not self.training:
            return boxes, {}
        if targets is None:
            raise ValueError("targets are needed in training, got None")
        return boxes, self._losses(objectness.flatten(), deltas, anchors, targets, images.image_sizes)

    def framed(self, proposals: Tensor, which: Tensor, conv4: Tensor, sizes: Tensor) -> Tensor:
        """Apply the framing to proposals. With the authors' framing, proposals of incomplete cells become empty.

        Args:
            proposals: `[N, P, 4]`.
            which: indices `[N, P]` of their anchors.
            conv4: `[N, C, H, W]`.
            sizes: height and width of the images, `[N, 2]`.
        """
        if self.framing == "paper":
            return proposals
        cell = which // self.anchor_generator.num_anchors_per_location()[0]
        row, column = cell // conv4.shape[3], cell % conv4.shape[3]
        whole = (row < sizes[:, :1] // STRIDE) & (column < sizes[:, 1:] // STRIDE)
        return _clipped(proposals, sizes) * whole[:, :, None]

    def _losses(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: list[Tensor],
        targets: list[dict[str, Tensor]],
        sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        assigned = [assign(*each) for each in zip(anchors, targets, sizes, strict=True)]
        labels = [label.clamp(max=1) for label, _ in assigned]
        positive, negative = (torch.cat(chosen).bool() for chosen in self.fg_bg_sampler(labels))
        goals = torch.cat(self.box_coder.encode([box for _, box in assigned], anchors))
        sampled = positive | negative
        count = distributed.mean(sampled.sum()).clamp(min=1)
        found = F.binary_cross_entropy_with_logits(objectness[sampled], positive[sampled].float(), reduction="sum")
        placed = F.smooth_l1_loss(deltas[positive], goals[positive], beta=1 / 9, reduction="sum")
        return {"loss_objectness": found / count, "loss_rpn_box_reg": placed / count}


def _clipped(proposals: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes `[N, P, 4]` to the pixels of their images, leaving at least one."""
    height, width = sizes.to(proposals.dtype).unbind(1)
    high = torch.stack((width - 1, height - 1, width, height), dim=1)
    return torch.minimum(torch.maximum(proposals, proposals.new_tensor([0, 0, 1, 1])), high[:, None])
