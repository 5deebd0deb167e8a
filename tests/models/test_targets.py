"""All detectors check what they learn from alike, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.engine.classification import ClassificationModule
from pliant.engine.metrics import ClassificationMetrics, SegmentationMetrics
from pliant.engine.segmentation import pixel_loss
from pliant.models import class_aware_rpn, faster_rcnn, fpn_faster_rcnn, rfcn
from pliant.schedule import Schedule

SMALL: dict[str, Any] = {"backbone": "timm/resnet10t", "min_size": 64, "max_size": 96}
BUILDERS = (faster_rcnn, rfcn, class_aware_rpn, fpn_faster_rcnn)
BOX = [5.0, 5.0, 60.0, 60.0]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda build: build.__name__)
def detector(request: pytest.FixtureRequest) -> nn.Module:
    scales = {} if request.param is fpn_faster_rcnn else {"anchor_scales": (1, 2, 4)}
    model: nn.Module = request.param(4, **SMALL, **scales).train()
    return model


def target(labels: Any = (1,), boxes: Any = (BOX,)) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "background": ([target([0])], ValueError, r"labels must lie between 1 and 3, got 0 to 0 in targets\[0\]"),
    "no class": ([target([4])], ValueError, r"labels must lie between 1 and 3, got 4 to 4 in targets\[0\]"),
    "negative": ([target([-1])], ValueError, r"labels must lie between 1 and 3, got -1 to -1"),
    "more labels": ([target([1, 2])], ValueError, r"got 2 labels for 1 boxes in targets\[0\]"),
    "fewer labels": ([target([1], [BOX, BOX])], ValueError, r"got 1 labels for 2 boxes in targets\[0\]"),
    "labels of floats": ([target([1.0])], TypeError, r"labels must be int64, got torch.float32 in targets\[0\]"),
    "labels in a table": ([target([[1]])], ValueError, r"labels must have shape \[L\], got \[1, 1\]"),
    "labels in a list": ([{**target(), "labels": [1]}], TypeError, r"labels must be a tensor, got list"),
    "a box alone": ([target([1], BOX)], ValueError, r"boxes must have shape \[L, 4\], got \[4\]"),
    "five numbers": ([target([1], [[*BOX, 1.0]])], ValueError, r"boxes must have shape \[L, 4\], got \[1, 5\]"),
    "whole numbers": (
        [target([1], [[5, 5, 60, 60]])],
        TypeError,
        "boxes must be floating-point numbers, got torch.int64",
    ),
    "boxes in a list": ([{**target(), "boxes": [BOX]}], TypeError, "boxes must be a tensor, got list"),
    "no width": ([target([1], [[5.0, 5, 5, 9]])], ValueError, "boxes must be finite, with x0 < x1 and y0 < y1, got"),
    "no height": ([target([1], [[5.0, 9, 9, 9]])], ValueError, "x0 < x1 and y0 < y1"),
    "width and height": ([target([1, 1], [BOX, [40.0, 40, 9, 9]])], ValueError, r"in row 1 in targets\[0\]"),
    "not a number": ([target([1], [[5.0, 5, NAN, 60]])], ValueError, "boxes must be finite"),
    "infinite": ([target([1], [[5.0, 5, INF, 60]])], ValueError, "boxes must be finite"),
    "no boxes": (
        [{"labels": torch.tensor([1])}],
        ValueError,
        r"targets\[0\] must have boxes and labels, but lacks boxes",
    ),
    "no labels": ([{"boxes": torch.tensor([BOX])}], ValueError, "but lacks labels"),
    "none": (None, ValueError, "targets are needed in training, got None"),
    "too many": ([target(), target()], ValueError, "there must be one target per image, got 2 targets for 1 images"),
    "too few": ([], ValueError, "got 0 targets for 1 images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_targets_are_refused(detector: nn.Module, case: str) -> None:
    targets, error, match = WRONG[case]
    with pytest.raises(error, match=match):
        detector([torch.rand(3, 64, 64)], targets)


def test_right_targets_train(detector: nn.Module) -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = detector([torch.rand(3, 64, 64)] * 2, [target([1, 3], [BOX, [0.0, 0, 20, 30]]), empty])
    assert all(loss.isfinite() for loss in losses.values())


def test_masks_hold_classes_alone() -> None:
    logits, mask = torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 2], [255, 1]]])
    assert pixel_loss(logits, mask).isfinite()
    with pytest.raises(ValueError, match="masks must lie between 0 and 2, or be 255, got 0 to 3"):
        pixel_loss(logits, mask + (mask == 2).long())
    with pytest.raises(TypeError, match=r"masks must be integers, got torch\.float32"):
        pixel_loss(logits, mask.float())
    with pytest.raises(ValueError, match=r"masks must have shape \[1, 2, 2\], got \[2, 2\]"):
        pixel_loss(logits, mask[0])
    with pytest.raises(ValueError, match="mask must lie between 0 and 2, or be 255, got 0 to 254"):
        SegmentationMetrics("abc").update(mask[0], torch.tensor([[0, 254], [255, 1]]))


def test_labels_of_images_are_classes() -> None:
    class Linear(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.flatten(1))

    module = ClassificationModule(Linear(3, 2), Schedule(1, 0.1), ("a", "b"))
    for labels in (torch.tensor([2]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="labels must lie between 0 and 1, got"):
            module.training_step((torch.rand(1, 3, 1, 1), labels), 0)
        with pytest.raises(ValueError, match="labels must lie between 0 and 1, got"):
            ClassificationMetrics(("a", "b")).update(torch.rand(1, 2), labels)
