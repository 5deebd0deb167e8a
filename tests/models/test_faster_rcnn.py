from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import pliant
from pliant.models import FasterRCNN, faster_rcnn

SMALL = {"backbone": "resnet10t", "deform_layers": 2, "min_size": 96, "max_size": 160, "anchor_scales": (1, 2, 4)}


def sample() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, 80, 120), torch.rand(3, 96, 64)]
    boxes = [torch.tensor([[8.0, 8, 60, 70], [40, 20, 110, 76]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
    return images, [{"boxes": box, "labels": label} for box, label in zip(boxes, labels, strict=True)]


def test_trains_with_an_image_without_boxes_and_reaches_the_offset_branches() -> None:
    model = faster_rcnn(3, **SMALL).train()
    losses = model(*sample())
    assert sorted(losses) == ["loss_box_reg", "loss_classifier", "loss_objectness", "loss_rpn_box_reg"]
    sum(losses.values()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    branches = [name for name in grads if "offset_conv" in name or "offset_fc" in name]
    assert len(branches) == 6
    assert all(grads[name] is not None and grads[name].isfinite().all() for name in grads)
    assert all(grads[name].abs().sum() > 0 for name in branches if name.endswith("weight"))


def test_detections_come_in_torchvisions_form() -> None:
    model = faster_rcnn(3, **SMALL, score_thresh=0.0).eval()
    images, _ = sample()
    with torch.no_grad():
        for image, found in zip(images, model(images), strict=True):
            assert sorted(found) == ["boxes", "labels", "scores"]
            assert found["boxes"].shape == (len(found["labels"]), 4)
            assert len(found["labels"]) > 0
            assert set(found["labels"].tolist()) <= {1, 2}
            assert (found["boxes"][:, 2::2] <= image.shape[2]).all()
            assert (found["boxes"][:, 3::2] <= image.shape[1]).all()


def copied(source: FasterRCNN, **options: object) -> FasterRCNN:
    """A twin with the same weights, but for the branches that it has and the source has not."""
    twin = faster_rcnn(3, **{**SMALL, **options})
    missing, unexpected = twin.load_state_dict(source.state_dict(), strict=False)
    assert all("offset_" in name for name in missing)
    assert not unexpected
    return twin.eval()


def test_the_deformable_network_starts_as_its_plain_twin() -> None:
    plain = faster_rcnn(3, **{**SMALL, "deform_layers": 0, "deform_roi": False, "score_thresh": 0.2}).eval()
    twin = copied(plain, score_thresh=0.2)
    images, _ = sample()
    with torch.no_grad():
        for left, right in zip(plain(images), twin(images), strict=True):
            for key in left:
                torch.testing.assert_close(left[key], right[key], rtol=1e-4, atol=1e-4)


def test_parameters_that_deformation_adds() -> None:
    def count(**options: object) -> int:
        model = faster_rcnn(21, backbone="resnet50", **options)
        return sum(parameter.numel() for parameter in model.parameters())

    plain = count(deform_layers=0, deform_roi=False)
    # three branches of 512 -> 18 channels, 3x3, with biases; a fully connected one of 256 * 7 * 7 -> 98
    convolutions, pooling = 3 * (512 * 18 * 9 + 18), 256 * 49 * 98 + 98
    assert count(deform_layers=3, deform_roi=False) - plain == convolutions
    assert count() - plain == convolutions + pooling == 1_478_296
    assert count(deform_roi=False, offset_groups=4) - plain == 4 * convolutions


def test_the_fc_branch_learns_a_hundred_times_slower() -> None:
    groups = pliant.param_groups(faster_rcnn(3, **SMALL), 0.1)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["roi_heads.box_roi_pool.pool.offset_fc.weight"] == pytest.approx(0.001)
    assert rates["rpn.head.conv.weight"] == 0.1


def test_config_rebuilds_the_model() -> None:
    model = faster_rcnn(3, **SMALL, modulated=True, sampling="authors", border="authors")
    again = faster_rcnn(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        faster_rcnn(1, **SMALL)
