"""Where parts of RoIs lie, by numbers worked out by hand and by what gradients reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from pliant import models
from pliant.introspect import roi_parts
from pliant.nn import DeformPSRoIPool, DeformRoIPool


class Pooling(nn.Module):
    """A map of stride 4, pooled at the RoI (5, 9, 28, 40), of which (4, 8, 28, 40) are whole cells."""

    def __init__(self, pool: nn.Module, channels: int = 3, rois: list[float] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, 4)
        self.pool = pool
        self.rois = rois or [5.0, 9.0, 28.0, 40.0]

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        inputs = (features, features[:, :3]) if isinstance(self.pool, DeformPSRoIPool) else (features,)
        return self.pool(*inputs, [torch.tensor([self.rois])])


def test_a_part_moves_by_gamma_times_the_side() -> None:
    pool = DeformRoIPool(3, 2, 1 / 4)
    # x offsets of the four parts, then y offsets; the RoI has 6 x 8 cells
    pool.offset_fc.bias.data = torch.tensor([0.5, 0, 0, -1.0, 0, 0.25, 0, 0])
    (found,) = roi_parts(Pooling(pool), torch.rand(3, 48, 36))
    assert found.layer == "pool"
    assert found.rois.tolist() == [[5, 9, 28, 40]]
    expected = torch.tensor([[[4, 8, 16, 24], [16, 8, 28, 24]], [[4, 24, 16, 40], [16, 24, 28, 40]]]).double()
    assert torch.equal(found.regular[0], expected)
    expected[0, 0] += 0.1 * 0.5 * 24 * torch.tensor([1, 0, 1, 0])
    expected[0, 1] += 0.1 * 0.25 * 32 * torch.tensor([0, 1, 0, 1])
    expected[1, 1] += 0.1 * -1 * 24 * torch.tensor([1, 0, 1, 0])
    torch.testing.assert_close(found.parts[0, 0], expected, rtol=0, atol=1e-5)


def test_every_class_has_parts_of_its_own() -> None:
    pool = DeformPSRoIPool(3, 2, 1 / 4, offset_classes=3, gamma=0.2)
    bias = torch.zeros(3, 2, 2, 2)  # class, x before y, part
    bias[1, 0, 0, 1], bias[2, 1, 1, 0] = 0.5, -0.25
    pool.offset_conv.bias.data = bias.flatten()
    (found,) = roi_parts(Pooling(pool, channels=12), torch.rand(3, 48, 36))
    assert found.parts.shape == (1, 3, 2, 2, 4)
    moved = found.parts[0] - found.regular
    expected = torch.zeros(3, 2, 2, 4, dtype=torch.float64)
    expected[1, 0, 1, [0, 2]] = 0.2 * 0.5 * 24
    expected[2, 1, 0, [1, 3]] = 0.2 * -0.25 * 32
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_the_authors_count_the_last_pixel_in_and_do_not_snap() -> None:
    pool = DeformRoIPool(3, 2, 1 / 4, sampling="authors")
    pool.offset_fc.bias.data[0] = 1.0
    (found,) = roi_parts(Pooling(pool), torch.rand(3, 48, 36))
    assert found.rois.tolist() == [[5, 9, 29, 41]]
    assert found.regular[0, 0, 0].tolist() == [5, 9, 17, 25]
    torch.testing.assert_close(found.parts[0, 0, 0, 0].tolist(), [7.4, 9.0, 19.4, 25.0], rtol=0, atol=1e-5)
    (boxed,) = roi_parts(Pooling(pool, rois=[0.0, 0, 8, 8]), torch.rand(3, 48, 36), torch.tensor([[5, 9, 29, 41.0]]))
    assert torch.equal(boxed.regular, found.regular)


@pytest.mark.parametrize("size", [2, 3])
def test_parts_hold_what_the_gradient_of_a_bin_reaches(size: int) -> None:
    pool = DeformPSRoIPool(3, size, 1 / 4, offset_classes=2)
    nn.init.normal_(pool.offset_conv.bias, std=2)
    model = Pooling(pool, channels=2 * size**2, rois=[3.0, 10.0, 41.0, 70.0])
    image = torch.rand(1, 3, 96, 80)
    (found,) = roi_parts(model, image[0])
    features = torch.rand(1, 2 * size**2, 24, 20, requires_grad=True)
    for kind in range(2):
        for row in range(size):
            for column in range(size):
                features.grad = None
                pool(features, features[:, :3].detach(), [torch.tensor([model.rois])])[0, kind, row, column].backward()
                cells = features.grad[0].abs().sum(0).nonzero()
                low, high = cells.amin(0).flip(0), cells.amax(0).flip(0) + 1
                box = found.parts[0, kind, row, column] / 4
                assert torch.equal(low, box[:2].floor().long().clamp(min=0))
                assert torch.equal(high, torch.minimum(box[2:].ceil().long(), torch.tensor([20, 24])))


def test_boxes_lie_in_the_image_before_a_detector_scales_it() -> None:
    class Scaled(Pooling):
        def __init__(self) -> None:
            super().__init__(DeformRoIPool(3, 2, 1 / 4), rois=[10.0, 18, 56, 80])
            self.transform = GeneralizedRCNNTransform(72, 200, [0.5] * 3, [0.2] * 3, size_divisible=32)

        def forward(self, images: list[Tensor]) -> Tensor:
            return super().forward(self.transform(images)[0].tensors)

    model = Scaled()
    image = torch.rand(3, 48, 36)
    (own,) = roi_parts(model, image)
    (boxed,) = roi_parts(model, image, torch.tensor([[5.0, 9, 28, 40], [0, 0, 36, 48]]))
    torch.testing.assert_close(own.rois, torch.tensor([[5.0, 9, 28, 40]]).double())
    torch.testing.assert_close(boxed.rois[0], own.rois[0])
    torch.testing.assert_close(boxed.regular[0], own.regular[0])
    torch.testing.assert_close(boxed.regular[1, 1, 1], torch.tensor([18, 24, 36, 48]).double())


def test_a_detector_shows_its_own_rois_and_given_boxes() -> None:
    model = models.rfcn(3, backbone="timm/resnet10t", deform_layers=1, min_size=48, max_size=80, bins=3).train()
    image = torch.rand(3, 60, 90)
    scores, boxes = roi_parts(model, image)
    assert (scores.layer, boxes.layer) == ("roi_heads.box_roi_pool.score_pool", "roi_heads.box_roi_pool.box_pool")
    assert scores.parts.shape[1:] == (3, 3, 3, 4)
    assert boxes.parts.shape[1:] == (1, 3, 3, 4)
    assert (scores.rois[:, 2] <= 90.01).all()
    asked = torch.tensor([[10.0, 5, 70, 55]])
    scores, _ = roi_parts(model, image, asked)
    torch.testing.assert_close(scores.rois, asked.double(), rtol=0, atol=1e-4)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_has_no_deformable_pooling_and_what_is_no_box() -> None:
    assert roi_parts(nn.Conv2d(3, 3, 1), torch.rand(3, 8, 8)) == []
    with pytest.raises(ValueError, match=r"boxes must have shape \[R, 4\], got \[4\]"):
        roi_parts(nn.Conv2d(3, 3, 1), torch.rand(3, 8, 8), torch.zeros(4))
