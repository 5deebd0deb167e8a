"""Detectors as functions of tensors: the same detections, also after torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from pliant.export import to_program
from pliant.models import class_aware_rpn, faster_rcnn, fpn_faster_rcnn, rfcn
from pliant.models.batched import BatchedDetector

# Of torch 2.6's exporter.
pytestmark = pytest.mark.filterwarnings("ignore:.*get_attr:UserWarning")
SMALL: dict[str, Any] = {
    "backbone": "timm/test_resnet",
    "deform_layers": 2,
    "anchor_scales": (1, 2, 4),
    "nms_thresh": 0.4,
}
AUTHORS: dict[str, Any] = {"framing": "authors", "sampling": "authors"}
BUILDS: dict[str, Any] = {
    "faster_rcnn": lambda: faster_rcnn(4, **SMALL),
    "faster_rcnn, authors": lambda: faster_rcnn(4, **SMALL, **AUTHORS),
    "faster_rcnn, authors, plain": lambda: faster_rcnn(4, **SMALL, **AUTHORS, deform_roi=False),
    "rfcn": lambda: rfcn(4, **SMALL, bins=3),
    "rfcn, authors": lambda: rfcn(4, **SMALL, bins=3, **AUTHORS),
    "class_aware_rpn": lambda: class_aware_rpn(4, **SMALL),
    "fpn_faster_rcnn": lambda: fpn_faster_rcnn(4, backbone="timm/test_resnet", deform_stages=2, score_thresh=0.0),
}


def detector(name: str) -> nn.Module:
    """Random weights, but large enough that detections and offsets differ."""
    torch.manual_seed(3)
    model = BUILDS[name]().eval()
    for key, parameter in model.named_parameters():
        if "offset" in key:
            nn.init.normal_(parameter, std=0.02)
        elif key.startswith(("rpn", "roi_heads")) and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.04)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Two images in one batch, the second smaller."""
    images, sizes = torch.rand(2, 3, 88, 120), torch.tensor([[88, 120], [72, 56]])
    images[1, :, 72:] = 0
    images[1, :, :, 56:] = 0
    return images, sizes


@torch.no_grad()
def as_it_is(model: nn.Module, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """The detector's own way, but for the scaling of images and boxes."""
    transform = model.transform
    single = [
        transform.normalize(image[:, :height, :width])
        for image, (height, width) in zip(images, sizes.tolist(), strict=True)
    ]
    listed = ImageList(
        transform.batch_images(single, transform.size_divisible), [tuple(size) for size in sizes.tolist()]
    )
    features = model.backbone(listed.tensors)
    proposals, _ = model.rpn(listed, features)
    return model.roi_heads(features, proposals, listed.image_sizes)[0]


def same(found: tuple[Tensor, Tensor, Tensor], expected: list[dict[str, Tensor]]) -> None:
    """The same detections, in any order where scores are equal."""
    for boxes, labels, scores, want in zip(*found, expected, strict=True):
        count = len(want["scores"])
        assert count > 3
        torch.testing.assert_close(scores[:count], want["scores"], rtol=0, atol=1e-5)
        got = torch.cat((boxes, 1000 * labels[:, None], 1000 * scores[:, None]), dim=1)[:count]
        wanted = torch.cat((want["boxes"], 1000 * want["labels"][:, None], 1000 * want["scores"][:, None]), dim=1)
        apart = torch.cdist(got, wanted, p=float("inf"))
        assert apart.amin(dim=0).max() < 1e-2
        assert apart.amin(dim=1).max() < 1e-2
        assert scores[count:].count_nonzero() == 0
        assert labels[count:].count_nonzero() == 0


@pytest.mark.parametrize("name", BUILDS)
@torch.no_grad()
def test_same_detections(name: str) -> None:
    model = detector(name)
    images, sizes = batch()
    same(BatchedDetector(model)(images, sizes), as_it_is(model, images, sizes))


@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("rfcn, authors", "class_aware_rpn", "fpn_faster_rcnn")
        ),
    ],
)
@torch.no_grad()
def test_exports_with_any_batch_and_size(name: str) -> None:
    model = detector(name)
    some = torch.rand(2, 3, 144, 200), torch.tensor([[144, 200], [140, 90]])
    program = to_program(BatchedDetector(model), some).module()
    images, sizes = batch()
    same(program(images, sizes), as_it_is(model, images, sizes))
    same(program(images[:1], sizes[:1]), as_it_is(model, images[:1], sizes[:1]))


def test_a_detector_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eval\(\)"):
        BatchedDetector(BUILDS["class_aware_rpn"]().train())
