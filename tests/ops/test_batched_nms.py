"""Non-maximum suppression of a batch as one operator keeps what torchvision keeps for each class of each image."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from pliant.ops.batched_nms import batched_nms


def crowded(images: int, classes: int, count: int) -> tuple[Tensor, Tensor]:
    corners = torch.rand(images, count, 2) * 20
    return torch.cat((corners, corners + 4 + torch.rand(images, count, 2) * 8), dim=2), torch.rand(
        images, classes, count
    )


@pytest.mark.parametrize("shape", [(2, 3, 40), (1, 1, 1), (2, 3, 0), (0, 3, 40)])
def test_each_class_of_each_image_is_suppressed_alone(shape: tuple[int, int, int]) -> None:
    boxes, scores = crowded(*shape)
    kept = batched_nms(boxes, scores, 0.4, 0.3)
    assert kept.shape == scores.shape
    for entry in range(shape[0]):
        for kind in range(shape[1]):
            listed = torch.where(scores[entry, kind] > 0.3)[0]
            left = listed[torchvision.ops.nms(boxes[entry, listed], scores[entry, kind, listed], 0.4)]
            assert torch.equal(torch.where(kept[entry, kind])[0], left.sort().values)


def test_the_operator_is_registered_well() -> None:
    boxes, scores = crowded(2, 2, 9)
    torch.library.opcheck(
        torch.ops.pliant.batched_nms.default, (boxes, scores, 0.5, 0.1), test_utils=("test_schema", "test_faketensor")
    )
