"""What holds for every detector of the paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.models import class_aware_rpn, faster_rcnn, rfcn

SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "deform_layers": 2,
    "min_size": 96,
    "max_size": 160,
    "anchor_scales": (1, 2, 4),
}
PLAIN: dict[str, Any] = {"deform_layers": 0, "deform_roi": False}
BUILDERS = [faster_rcnn, rfcn, class_aware_rpn]


def options(build: Callable[..., Any], **changes: Any) -> dict[str, Any]:
    given = {**SMALL, **changes}
    return {name: value for name, value in given.items() if build is not class_aware_rpn or name != "deform_roi"}


def sample() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 80, 120, generator=generator), torch.rand(3, 96, 64, generator=generator)]
    boxes = [torch.tensor([[8.0, 8, 60, 70], [40, 20, 110, 76]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
    return images, [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("framing", ["paper", "authors"])
def test_trains_with_an_image_without_boxes_and_reaches_every_parameter(build: Any, framing: str) -> None:
    extra = {} if build is class_aware_rpn else {"framing": framing, "sampling": framing}
    torch.manual_seed(1)
    model = build(3, **options(build), **extra).train()
    losses = model(*sample())
    assert {"loss_classifier", "loss_box_reg"} <= set(losses)
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        if parameter.requires_grad and ("offset_" in name or not name.startswith("backbone.")):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("build", BUILDERS)
def test_detections_come_in_torchvisions_form(build: Any) -> None:
    model = build(3, **options(build), score_thresh=0.0).eval()
    images, _ = sample()
    with torch.no_grad():
        for image, found in zip(images, model(images), strict=True):
            assert sorted(found) == ["boxes", "labels", "scores"]
            assert 0 < len(found["labels"]) <= 300
            assert set(found["labels"].tolist()) <= {1, 2}
            assert (found["scores"].diff() <= 0).all()
            assert (found["boxes"][:, :2] >= 0).all()
            assert (found["boxes"][:, 2] <= image.shape[2]).all()
            assert (found["boxes"][:, 3] <= image.shape[1]).all()


@pytest.mark.parametrize("build", BUILDERS)
def test_at_the_start_the_deformable_network_is_its_plain_twin(build: Any) -> None:
    plain, twin = build(3, **options(build, **PLAIN)).eval(), build(3, **options(build)).eval()
    missing, unexpected = twin.load_state_dict(plain.state_dict(), strict=False)
    assert missing
    assert all("offset_" in name for name in missing)
    assert not unexpected
    x, boxes = torch.rand(2, 3, 96, 144), [torch.tensor([[3.0, 5, 90, 60], [40, 20, 140, 90]]), torch.zeros(0, 4)]

    def run(model: Any) -> list[Tensor]:
        features = model.backbone(x)
        if build is class_aware_rpn:
            return [*features.values(), *(each["scores"] for each in model.roi_heads(features, [], [(96, 144)] * 2)[0])]
        heads = model.roi_heads
        pooled = heads.box_head(heads.box_roi_pool(features, boxes, [(96, 144)] * 2))
        return [*features.values(), *heads.box_predictor(pooled)]

    with torch.no_grad():
        for left, right in zip(run(plain), run(twin), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def parameters(build: Any, **changes: Any) -> int:
    with torch.device("meta"):
        model = build(21, backbone="resnet101", **changes)
    return sum(parameter.numel() for parameter in model.parameters())


CONVOLUTIONS = 3 * (512 * 18 * 9 + 18)  # three branches of 512 to 18 channels, 3x3, with biases


@pytest.mark.parametrize(
    ("build", "pooling"),
    [
        (faster_rcnn, 256 * 49 * 98 + 98),
        (rfcn, 1024 * 98 * 21 + 98 * 21 + 1024 * 98 + 98),
    ],
)
def test_parameters_that_deformation_adds(build: Any, pooling: int) -> None:
    plain = parameters(build, **PLAIN)
    assert parameters(build) - plain == CONVOLUTIONS + pooling
    assert parameters(build, deform_roi=False) - plain == CONVOLUTIONS
    assert parameters(build, deform_layers=0) - plain == pooling
    assert parameters(build, deform_roi=False, offset_groups=4) - plain == 4 * CONVOLUTIONS


def test_parameters_are_those_of_the_paper() -> None:
    """In millions, as counted in the specification: R-FCN +2.46, Faster R-CNN +1.48."""
    assert round((parameters(rfcn) - parameters(rfcn, **PLAIN)) / 1e6, 2) == 2.46
    assert round((parameters(faster_rcnn) - parameters(faster_rcnn, **PLAIN)) / 1e6, 2) == 1.48
    assert parameters(class_aware_rpn) - parameters(class_aware_rpn, deform_layers=0) == CONVOLUTIONS


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 6])
def test_every_number_of_deformable_layers(build: Any, layers: int) -> None:
    with torch.device("meta"):
        model = build(5, backbone="resnet50", deform_layers=layers, offset_groups=4)
    names = [name for name, _ in model.named_modules() if name.endswith("conv2.offset_conv")]
    order = ["layer3.3", "layer3.4", "layer3.5", "layer4.0", "layer4.1", "layer4.2"]
    assert names == [f"backbone.{block}.conv2.offset_conv" for block in order[6 - layers :]]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("dilation", [2, 4, 6, 8])
def test_every_dilation(build: Any, dilation: int) -> None:
    with torch.device("meta"):
        model = build(5, backbone="resnet50", dilation=dilation, deform_layers=0)
    for block in model.backbone.layer4:
        assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)


@pytest.mark.parametrize("build", BUILDERS)
def test_config_rebuilds_the_model(build: Any) -> None:
    model = build(3, **options(build), modulated=True, border="authors")
    again = build(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


@pytest.mark.parametrize("build", BUILDERS)
def test_wrong_arguments_are_named(build: Any) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        build(1, **options(build))
    model = build(3, **options(build)).train()
    images, targets = sample()
    with pytest.raises(ValueError, match="between 1 and 2, got 1 to 3"):
        model(images, [{**targets[0], "labels": torch.tensor([1, 3])}, targets[1]])


def test_wrong_framing_is_named() -> None:
    with pytest.raises(ValueError, match="framing must be one of 'paper', 'authors', got 'theirs'"):
        rfcn(3, **SMALL, framing="theirs")
