"""Several scales, mirroring, box averaging and soft-NMS, against slow ways to the same results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou

from pliant.engine.test_time_augmentation import (
    AugmentedDetector,
    AugmentedSegmenter,
    Procedure,
    average_boxes,
    mirror,
    soft_nms,
)
from pliant.models import class_aware_rpn, rfcn

IMAGE = (3, 40, 56)


@pytest.fixture
def detector() -> FasterRCNN:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU())
    body.out_channels = 8
    model = FasterRCNN(
        body,
        num_classes=3,
        min_size=48,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_detections_per_img=12,
        box_score_thresh=0.3,
        box_nms_thresh=0.4,
        rpn_post_nms_top_n_test=40,
    )
    # Larger weights than those of the start make classes and boxes differ from place to place.
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(15)
    return model.eval()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one["labels"].tolist() == other["labels"].tolist()
    torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def unsuppressed(model: FasterRCNN, image: Tensor, side: int, longest: int) -> dict[str, Tensor]:
    """All boxes of the detector's own call, with its limits lifted by hand."""
    before = model.roi_heads.nms_thresh, model.roi_heads.detections_per_img
    sizes = model.transform.min_size, model.transform.max_size
    model.roi_heads.nms_thresh, model.roi_heads.detections_per_img = 1.0, 10**6
    model.transform.min_size, model.transform.max_size = (side,), longest
    found = model([image])[0]
    model.roi_heads.nms_thresh, model.roi_heads.detections_per_img = before
    model.transform.min_size, model.transform.max_size = sizes
    return found


@torch.no_grad()
def test_without_options_it_is_the_detector(detector: FasterRCNN) -> None:
    images = [torch.rand(IMAGE), torch.rand(3, 33, 70)]
    expected = [detector([image])[0] for image in images]
    for found, own in zip(AugmentedDetector(detector, Procedure())(images), expected, strict=True):
        assert len(own["boxes"]) > 3
        same(found, own)


@torch.no_grad()
def test_scales_are_put_together_before_nms(detector: FasterRCNN) -> None:
    image = torch.rand(IMAGE)
    found = AugmentedDetector(detector.eval(), Procedure(scales=(32, 72)))([image])[0]
    # 48 goes with 64 at most, so 32 with 43 and 72 with 96.
    parts = [unsuppressed(detector, image, 32, 43), unsuppressed(detector, image, 72, 96)]
    union = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    keep = batched_nms(union["boxes"], union["scores"], union["labels"], 0.4)[:12]
    assert any(index < len(parts[0]["boxes"]) for index in keep)
    assert any(index >= len(parts[0]["boxes"]) for index in keep)
    same(found, {key: value[keep] for key, value in union.items()})
    # The detector is left as it was.
    assert (detector.transform.min_size, detector.transform.max_size) == ((48,), 64)
    assert (detector.roi_heads.nms_thresh, detector.roi_heads.detections_per_img) == (0.4, 12)


@torch.no_grad()
def test_with_flip_a_mirrored_image_gives_mirrored_boxes(detector: FasterRCNN) -> None:
    image = torch.rand(IMAGE)
    flipping = AugmentedDetector(detector, Procedure(flip=True))
    found, twin = flipping([image, image.flip(-1)])
    assert len(found["boxes"]) > 3
    same(found, {**twin, "boxes": mirror(twin["boxes"], IMAGE[2])})
    plain = detector([image])[0]
    assert found["scores"].tolist() != plain["scores"].tolist()


@torch.no_grad()
def test_second_pass_pools_at_the_boxes_of_the_first(detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(IMAGE)
    kind, calls = type(detector.roi_heads), []
    own = kind.forward

    def record(self, features, proposals, sizes, targets=None):
        result = own(self, features, proposals, sizes, targets)
        calls.append((proposals[0], dict(result[0][0])))
        return result

    monkeypatch.setattr(kind, "forward", record)
    detector([image])
    averaged = AugmentedDetector(detector, Procedure(box_averaging=True))([image])[0]
    (_, plain), (_, first), (proposals, second) = calls
    torch.testing.assert_close(proposals, plain["boxes"])
    assert len(first["boxes"]) > len(plain["boxes"])
    # By hand, in the frame of the scaled image.
    union = {key: torch.cat([first[key], second[key]]) for key in first}
    expected = []
    keep = batched_nms(union["boxes"], union["scores"], union["labels"], 0.4)[:12]
    for index in keep:
        rows = [
            place
            for place in range(len(union["boxes"]))
            if union["labels"][place] == union["labels"][index]
            and box_iou(union["boxes"][index, None], union["boxes"][place, None]).item() >= 0.5
        ]
        weights = union["scores"][rows]
        expected.append((weights[:, None] * union["boxes"][rows]).sum(dim=0) / weights.sum())
    scale = torch.tensor([56 / 64, 40 / 45]).repeat(2)  # 40 x 56 is seen at 45 x 64
    torch.testing.assert_close(averaged["boxes"], torch.stack(expected) * scale, rtol=1e-4, atol=1e-3)
    assert averaged["labels"].tolist() == union["labels"][keep].tolist()


def test_average_weighs_by_score_within_the_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [0, 0, 10, 9]])
    labels, scores = torch.tensor([1, 1, 1, 2]), torch.tensor([0.6, 0.2, 0.9, 0.9])
    # The third overlaps by 0.4, the fourth is of another class.
    averaged = average_boxes(boxes[:1], labels[:1], boxes, labels, scores)
    torch.testing.assert_close(averaged, torch.tensor([[0.0, 0, 10, (0.6 * 10 + 0.2 * 8) / 0.8]]))


def slow_soft_nms(boxes: list, scores: list, sigma: float, threshold: float) -> list[tuple[int, float]]:
    """One class, as the paper's figure has it."""
    left, taken = dict(enumerate(scores)), []
    while left:
        best = max(left, key=lambda index: left[index])
        value = left.pop(best)
        if value <= threshold:
            continue
        taken.append((best, value))
        for index in left:
            width = min(boxes[best][2], boxes[index][2]) - max(boxes[best][0], boxes[index][0])
            height = min(boxes[best][3], boxes[index][3]) - max(boxes[best][1], boxes[index][1])
            shared = max(width, 0) * max(height, 0)
            areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (boxes[best], boxes[index]))
            left[index] *= math.exp(-((shared / (areas - shared)) ** 2) / sigma)
    return taken


@pytest.mark.parametrize("limit", [7, 100])
def test_soft_nms_against_one_class_at_a_time(limit: int) -> None:
    corners = torch.rand(60, 2, dtype=torch.float64) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2, dtype=torch.float64) * 15], dim=1)
    scores, labels = torch.rand(60, dtype=torch.float64), torch.randint(1, 4, (60,))
    expected = []
    for label in (1, 2, 3):
        of_class = torch.where(labels == label)[0].tolist()
        taken = slow_soft_nms(boxes[of_class].tolist(), scores[of_class].tolist(), 0.6, 0.1)
        expected += [(of_class[index], value) for index, value in taken]
    expected = sorted(expected, key=lambda item: -item[1])[:limit]
    keep, values = soft_nms(boxes, scores, labels, score_threshold=0.1, limit=limit)
    assert keep.tolist() == [index for index, _ in expected]
    assert values.tolist() == pytest.approx([value for _, value in expected])
    assert min(values) > 0.1


@torch.no_grad()
def test_soft_nms_keeps_overlapping_boxes(detector: FasterRCNN) -> None:
    image = torch.rand(IMAGE)
    detector.roi_heads.detections_per_img, detector.roi_heads.score_thresh = 1000, 0.01
    plain = detector([image])[0]
    soft = AugmentedDetector(detector, Procedure(soft_nms=True))([image])[0]
    assert len(soft["boxes"]) > len(plain["boxes"])
    same({key: value[:1] for key, value in soft.items()}, {key: value[:1] for key, value in plain.items()})


@torch.no_grad()
def test_nothing_found_stays_nothing(detector: FasterRCNN) -> None:
    detector.roi_heads.score_thresh = 1.0
    for procedure in (Procedure(flip=True, box_averaging=True), Procedure(scales=(32,), soft_nms=True)):
        found = AugmentedDetector(detector, procedure)([torch.rand(IMAGE)])[0]
        assert found["boxes"].shape == (0, 4)
        assert found["labels"].dtype == torch.int64


@torch.no_grad()
@pytest.mark.parametrize("framing", ["paper", "authors"])
def test_networks_of_the_paper(framing: str) -> None:
    model = rfcn(3, backbone="timm/resnet10t", min_size=48, max_size=64, score_thresh=0.0, framing=framing).eval()
    image = torch.rand(IMAGE)
    same(AugmentedDetector(model, Procedure())([image])[0], model([image])[0])
    procedure = Procedure(scales=(32, 48), flip=True, box_averaging=True)
    found = AugmentedDetector(model, procedure)([image])[0]
    assert len(found["boxes"])
    assert torch.isfinite(found["boxes"]).all()


@torch.no_grad()
def test_one_stage_has_no_second_pass() -> None:
    model = class_aware_rpn(3, backbone="timm/resnet10t", min_size=48, max_size=64, score_thresh=0.0).eval()
    image = torch.rand(IMAGE)
    same(AugmentedDetector(model, Procedure())([image])[0], model([image])[0])
    assert len(AugmentedDetector(model, Procedure(scales=(32, 48), flip=True, soft_nms=True))([image])[0]["boxes"])
    with pytest.raises(ValueError, match="second stage, which ClassAwareRPN does not have"):
        AugmentedDetector(model, Procedure(box_averaging=True))


def test_what_cannot_be_done_is_refused(detector: FasterRCNN) -> None:
    with pytest.raises(ValueError, match=r"different positive.*\(480, 480\)"):
        Procedure(scales=(480, 480))
    with pytest.raises(RuntimeError, match="eval"):
        AugmentedDetector(detector, Procedure()).train()([torch.rand(IMAGE)])
    with pytest.raises(ValueError, match="for detection"):
        AugmentedSegmenter(nn.Identity(), Procedure(soft_nms=True))
    body = nn.Conv2d(3, 8, 3, stride=8)
    body.out_channels = 8
    with pytest.raises(TypeError, match="RetinaNet"):
        AugmentedDetector(RetinaNet(body, 3), Procedure())


class Pixels(nn.Module):
    """Two classes, by a convolution that left and right are not alike for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images)}


@torch.no_grad()
def test_segmentation_averages_probabilities() -> None:
    model, images = Pixels().eval(), torch.rand(2, 3, 12, 18)
    torch.testing.assert_close(
        AugmentedSegmenter(model, Procedure())(images)["out"], model(images)["out"].log_softmax(dim=1)
    )
    flipping = AugmentedSegmenter(model, Procedure(flip=True))
    expected = (model(images)["out"].softmax(1) + model(images.flip(-1))["out"].flip(-1).softmax(1)) / 2
    torch.testing.assert_close(flipping(images)["out"].exp(), expected)
    both = AugmentedSegmenter(model, Procedure(scales=(12, 24)))(images)["out"].exp()
    larger = nn.functional.interpolate(images, size=(24, 36), mode="bilinear", antialias=True)
    larger = nn.functional.interpolate(model(larger)["out"].softmax(1), size=(12, 18), mode="bilinear", antialias=True)
    torch.testing.assert_close(both, (model(images)["out"].softmax(1) + larger) / 2)


def test_no_setting_of_the_network_is_written(detector: Any) -> None:
    class Sealed(type(detector.roi_heads)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            assert self is not sealed or name == "training", f"{name} was set"
            super().__setattr__(name, value)

    sealed = detector.roi_heads
    sealed.__class__ = Sealed
    AugmentedDetector(detector, Procedure(scales=(40,), flip=True, box_averaging=True))([torch.rand(3, 50, 60)])


def test_the_scales_are_in_proportion_to_the_networks_own() -> None:
    paper = Procedure(multi_scale=True, flip=True)
    assert paper.at(600).sides == (480, 576, 688, 864, 1200, 1400)
    assert paper.at(256) == Procedure((205, 246, 294, 369, 512, 597), flip=True, multi_scale=True)
    assert Procedure(scales=(480,)).at(256).sides == (480,)
    assert Procedure().at(256) == Procedure()
