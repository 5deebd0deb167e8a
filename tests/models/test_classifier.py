"""Classifiers of every backbone, and their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.backbones import AlignedInceptionResNet, CaffeResNet
from pliant.models import Classifier, classifier
from pliant.nn import DeformConv2d


def test_paper_networks_by_name() -> None:
    with torch.device("meta"):
        assert isinstance(classifier(3, backbone="resnet50").backbone, CaffeResNet)
        aligned = classifier(1000, backbone="aligned_inception_resnet", deform_layers=9, modulated=True)
    assert isinstance(aligned.backbone, AlignedInceptionResNet)
    layers = {name: module for name, module in aligned.named_modules() if isinstance(module, DeformConv2d)}
    assert len(layers) == 9
    assert all(name.startswith("backbone.layer4.") and layer.modulated for name, layer in layers.items())
    assert any(isinstance(module, nn.BatchNorm2d) for module in aligned.modules())


def test_images_are_normalised_as_the_backbone_wants_them() -> None:
    model = classifier(3, backbone="timm/resnet10t").eval()
    images = torch.rand(2, 3, 40, 33)
    normal = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    torch.testing.assert_close(model(images), model.backbone(normal))
    assert model(images).shape == (2, 3)
    identity = Classifier(nn.Identity(), (0.5, 0.25, 0.0), (1 / 255,) * 3)
    torch.testing.assert_close(identity(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor([127.5, 191.25, 255.0]))
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\], got \[3, 40, 33\]"):
        model(images[0])


def test_norms_are_trained_unless_frozen() -> None:
    assert any(isinstance(module, nn.BatchNorm2d) for module in classifier(2, backbone="resnet10t").modules())
    frozen = classifier(2, backbone="resnet10t", frozen=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())


def test_config_rebuilds_the_model() -> None:
    with torch.device("meta"):
        model = classifier(5, backbone="resnet50", deform_layers=3, image_mean=(0.1, 0.2, 0.3))
        assert classifier(**model.config).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"backbone": "resnet51"}, "aligned_inception_resnet or a timm model after timm/, got 'resnet51'"),
        ({"backbone": "resnet10t", "padded_pool": True}, "for the paper's networks, not for resnet10t"),
        ({"backbone": "aligned_inception_resnet", "padded_pool": True}, "for the paper's ResNets"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**{"num_classes": 2, **options})


def test_finer_classes_start_from_the_layers_below(tmp_path: Path) -> None:
    first = classifier(3, backbone="resnet50")
    torch.save(first.state_dict(), tmp_path / "first.pth")
    second = classifier(2, backbone="resnet50", weights=tmp_path / "first.pth")
    assert second.backbone.fc.weight.shape[0] == 2
    assert torch.equal(second.backbone.layer4[2].conv3.weight, first.backbone.layer4[2].conv3.weight)
