from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from pliant.models.fpn_faster_rcnn import PyramidAnchors, PyramidRoIAlign, fpn_faster_rcnn
from pliant.nn import DeformConv2d

SMALL: dict[str, Any] = {"backbone": "timm/resnet10t", "min_size": 64, "max_size": 128}


def images_and_targets() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    boxes = [torch.tensor([[4.0, 8, 40, 50]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2]), torch.zeros(0, dtype=torch.int64)]
    targets = [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]
    return [torch.rand(3, 60, 90), torch.rand(3, 80, 64)], targets


@pytest.mark.parametrize("modulated", [False, True])
def test_trains_and_detects(modulated: bool) -> None:
    torch.manual_seed(0)
    model = fpn_faster_rcnn(3, **SMALL, modulated=modulated, score_thresh=0.0).train()
    images, targets = images_and_targets()
    sum(model(images, targets).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "offset_conv.weight" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        found = model.eval()(images)
    assert all(sorted(each) == ["boxes", "labels", "scores"] and len(each["boxes"]) for each in found)


@pytest.mark.parametrize(("name", "prefix"), [("resnet50", ""), ("timm/resnet50", "body.")])
def test_conv3_to_conv5_are_deformable(name: str, prefix: str) -> None:
    model = fpn_faster_rcnn(81, backbone=name)
    found = [name for name, module in model.backbone.body.named_modules() if isinstance(module, DeformConv2d)]
    blocks = [("layer2", 4), ("layer3", 6), ("layer4", 3)]
    assert found == [f"{prefix}{stage}.{i}.conv2" for stage, count in blocks for i in range(count)]


@pytest.mark.parametrize("name", ["resnet50", "timm/resnet50"])
def test_the_first_stage_and_norms_do_not_train(name: str) -> None:
    model = fpn_faster_rcnn(81, backbone=name)
    trained = {name for name, parameter in model.backbone.body.named_parameters() if parameter.requires_grad}
    assert trained
    assert not [name for name in trained if re.search(r"bn\d|downsample\.1|layer1|^(body\.)?conv1", name)]


def test_starts_as_its_plain_twin() -> None:
    plain, twin = fpn_faster_rcnn(3, **SMALL, deform_stages=0).eval(), fpn_faster_rcnn(3, **SMALL).eval()
    missing, unexpected = twin.load_state_dict(plain.state_dict(), strict=False)
    assert missing
    assert all(".offset_conv." in name for name in missing)
    assert not unexpected
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for left, right in zip(plain.backbone(x).values(), twin.backbone(x).values(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_anchors_keep_their_strides_where_maps_do_not_divide_the_image() -> None:
    maps = [torch.zeros(1, 1, -(-800 // stride), -(-96 // stride)) for stride in (4, 8, 16, 32)]
    maps.append(torch.zeros(1, 1, 13, 2))
    anchors = PyramidAnchors()(ImageList(torch.zeros(1, 3, 800, 96), [(800, 96)]), maps)[0]
    last = anchors[-13 * 2 * 3 :].view(13, 2, 3, 4)
    centre = (last[..., :2] + last[..., 2:]) / 2
    torch.testing.assert_close(centre[12, 1, 0], torch.tensor([64.0, 768.0]))
    torch.testing.assert_close(last[0, 0, 1], torch.tensor([-256.0, -256, 256, 256]))
    width, height = (last[0, 0, 0, 2:] - last[0, 0, 0, :2]).tolist()
    assert width == pytest.approx(512 * 2**0.5)
    assert height == pytest.approx(512 / 2**0.5)


def test_rois_go_to_the_levels_that_torchvision_chooses() -> None:
    """Each level holds its own number, so the pooled value says where a RoI went."""
    maps = {str(i): torch.full((1, 1, 256 // 2**i, 256 // 2**i), float(i)) for i in range(4)}
    sides = torch.tensor([10.0, 60, 111, 112, 113, 223, 224, 447, 448, 900])
    boxes = torch.stack((torch.zeros(10), torch.zeros(10), sides, sides), dim=1)
    theirs = MultiScaleRoIAlign(list(maps), 7, 2)(maps, [boxes], [(1024, 1024)])
    ours = PyramidRoIAlign(7)(maps, [boxes], [(1024, 1024)])
    torch.testing.assert_close(ours, theirs)
    assert sorted(set(ours.flatten().tolist())) == [0, 1, 2, 3]


def test_config_rebuilds_the_model() -> None:
    model = fpn_faster_rcnn(3, **SMALL, modulated=True, deform_stages=2)
    again = fpn_faster_rcnn(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="deform_stages must be less than or equal to 3, got 4"):
        fpn_faster_rcnn(3, **SMALL, deform_stages=4)
    with pytest.raises(ValueError, match="timm model after timm/, got 'resnet51'"):
        fpn_faster_rcnn(3, backbone="resnet51")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        fpn_faster_rcnn(1, **SMALL)
