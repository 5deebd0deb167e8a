"""Detection and segmentation metrics on cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pliant.engine import DetectionMetrics, SegmentationMetrics


def test_coco_and_voc_numbers_of_a_detection() -> None:
    metrics = DetectionMetrics(["cell", "spot"])
    # Overlap 0.82: right up to the threshold 0.8, that is for 7 of COCO's 10.
    prediction = {
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 82.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([1]),
    }
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 100.0]]),
        "labels": torch.tensor([1]),
        "difficult": torch.tensor([False]),
        "iscrowd": torch.tensor([False]),
        "area": torch.tensor([10000.0]),
        "image_id": 0,
    }
    metrics.update([prediction], [target])
    results = metrics.compute()
    assert results["AP50"] == pytest.approx(1.0)
    assert results["AP75"] == pytest.approx(1.0)
    assert results["AP"] == pytest.approx(0.7)
    assert results["VOC_AP50"] == results["VOC_AP70_11pt"] == 1.0
    assert results["per_class"]["cell"]["AP"] == pytest.approx(0.7)
    assert math.isnan(results["per_class"]["spot"]["AP"])
    assert math.isnan(results["per_class"]["spot"]["VOC_AP50"])
    metrics.reset()
    assert metrics.evaluated() == []


def test_difficult_object_is_not_required_by_coco_either() -> None:
    metrics = DetectionMetrics(["cell"])
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    hit = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([1]),
    }
    for image_id, (prediction, difficult) in enumerate([(hit, False), (nothing, True)]):
        target = {
            "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
            "labels": torch.tensor([1]),
            "difficult": torch.tensor([difficult]),
            "image_id": image_id,
        }
        metrics.update([prediction], [target])
    assert metrics.compute()["AP"] == pytest.approx(1.0)


def test_nothing_to_find_and_nothing_found() -> None:
    metrics = DetectionMetrics(["cell"])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metrics.update([{**nothing, "scores": torch.zeros(0)}], [{**nothing, "image_id": 0}])
    results = metrics.compute()
    assert math.isnan(results["AP"])
    assert math.isnan(results["per_class"]["cell"]["AP"])


def test_mean_iou_by_hand() -> None:
    metrics = SegmentationMetrics(["background", "leaf", "symptom", "never"])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2]])
    metrics.update(prediction, mask)
    results = metrics.compute()
    # background: 2 of 3; leaf: 3 of 3 + 5 - 3; symptom: 0 of 1; the fourth does not occur.
    assert results["per_class"]["background"]["IoU"] == pytest.approx(2 / 3)
    assert results["per_class"]["leaf"]["IoU"] == pytest.approx(3 / 5)
    assert results["per_class"]["symptom"]["IoU"] == 0.0
    assert math.isnan(results["per_class"]["never"]["IoU"])
    assert results["mIoU"] == pytest.approx((2 / 3 + 3 / 5) / 3)
    assert results["pixel_accuracy"] == pytest.approx(5 / 7)


def test_prediction_is_resized_to_the_mask() -> None:
    metrics = SegmentationMetrics(["a", "b"])
    mask = torch.zeros(6, 8, dtype=torch.int64)
    mask[:, 4:] = 1
    metrics.update(torch.tensor([[0, 1], [0, 1], [0, 1]]), mask)
    assert metrics.compute()["mIoU"] == 1.0


def test_truth_is_resized_to_the_prediction_too() -> None:
    metrics = SegmentationMetrics(["a", "b"])
    # At the size of the prediction columns 1, 3, 5 and 7 of the truth are seen.
    mask = torch.tensor([[0, 0, 0, 1, 1, 0, 1, 1]]).repeat(2, 1)
    metrics.update(torch.tensor([[0, 1, 1, 1]]), mask)
    results = metrics.compute()
    # At the size of the truth a has 2 of 4 in each row, b 4 of 6.
    assert results["per_class"]["a"]["IoU"] == pytest.approx(2 / 4)
    assert results["per_class"]["b"]["IoU"] == pytest.approx(4 / 6)
    assert results["mIoU"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert results["per_class"]["a"]["IoU_scaled"] == pytest.approx(1 / 2)
    assert results["per_class"]["b"]["IoU_scaled"] == pytest.approx(2 / 3)
    assert results["mIoU_scaled"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_mean_iou_against_torchmetrics_and_a_count() -> None:
    metrics, jaccard = SegmentationMetrics(list("abcde")), MulticlassJaccardIndex(5, ignore_index=255)
    pixels = []
    for height, width in ((7, 9), (12, 5), (3, 31)):
        mask = torch.randint(0, 4, (height, width))  # the fifth class is never true
        mask[torch.rand(height, width) < 0.2] = 255
        prediction = torch.randint(0, 5, (height, width))
        metrics.update(prediction, mask)
        jaccard.update(prediction[None], mask[None])
        pixels += list(zip(prediction.flatten().tolist(), mask.flatten().tolist(), strict=True))
    results = metrics.compute()
    counted = [(found, true) for found, true in pixels if true != 255]
    for label, name in enumerate("abcde"):
        both = sum(found == true == label for found, true in counted)
        either = sum(label in pair for pair in counted)
        assert results["per_class"][name]["IoU"] == pytest.approx(both / either)
    assert results["mIoU"] == results["mIoU_scaled"] == pytest.approx(float(jaccard.compute()))


def test_images_add_up_as_pixels() -> None:
    metrics = SegmentationMetrics(["a", "b"])
    metrics.update(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64))
    metrics.update(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64))
    results = metrics.compute()
    assert results["per_class"]["a"]["IoU"] == pytest.approx(3 / 4)
    assert results["per_class"]["b"]["IoU"] == 0.0


def test_one_class_is_too_few() -> None:
    with pytest.raises(ValueError, match="two classes"):
        SegmentationMetrics(["background"])
