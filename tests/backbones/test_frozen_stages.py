"""Stages that are not trained, and their maps kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pliant.backbones import CaffeResNetBackbone, backbone
from pliant.backbones import frozen_stages as module
from pliant.models import deeplab, faster_rcnn


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs whose maps were computed one by one."""
    shapes, run = [], module._run

    def counting(stages: list[nn.Module], x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            shapes.append(tuple(x.shape))
        return run(stages, x)

    monkeypatch.setattr(module, "_run", counting)
    return shapes


def test_only_the_stages_above_are_trained() -> None:
    for stage, trained in (
        (None, {"layer2", "layer3", "layer4"}),
        ("conv4", {"layer3", "layer4"}),
        ("conv5", {"layer4"}),
    ):
        body = backbone("resnet50", freeze_below=stage)
        assert {name.split(".")[0] for name, value in body.named_parameters() if value.requires_grad} == trained
        body(torch.rand(1, 3, 32, 32))["conv5"].sum().backward()
        assert {name.split(".")[0] for name, value in body.named_parameters() if value.grad is not None} == trained


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"deform_layers": 6, "freeze_below": "conv5"}, r"freezes layer3\.3\.conv2, .* take fewer layers"),
        ("resnet50", {"freeze_below": "conv6"}, "must be one of conv3, conv4, conv5, got 'conv6'"),
        (
            "timm/resnet10t",
            {"freeze_below": "conv5"},
            "for the paper's networks, not for timm/resnet10t: freeze_",
        ),
    ],
)
def test_what_cannot_be_frozen(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone(name, **options)


def test_kept_maps_are_those_of_the_stages(tmp_path: Path, computed: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 48, 64)
    body = backbone("resnet50", freeze_below="conv5")
    expected = body(images)
    body.keep_frozen_maps(tmp_path)
    for _ in range(2):
        for name, found in body(images).items():
            torch.testing.assert_close(
                found, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].detach().abs().max())
            )
    assert computed == [(1, 3, 48, 64)] * 2

    again = backbone("resnet50", freeze_below="conv5", deform_layers=3)
    again.load_state_dict(body.state_dict(), strict=False)
    again.keep_frozen_maps(tmp_path)
    again(images)
    assert len(computed) == 2, "networks with equal stages share the maps"

    again(images[:, :, :, :32])
    assert computed[2:] == [(1, 3, 48, 32)] * 2, "other pixels have other maps"
    padded = backbone("resnet50", freeze_below="conv5", padded_pool=True)
    padded.load_state_dict(body.state_dict())
    padded.keep_frozen_maps(tmp_path)
    padded(images)
    assert len(computed) == 6, "other layers have other maps, though the weights are equal"


def test_weights_that_are_loaded_later_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 32, 32)
    body, other = (backbone("resnet50", freeze_below="conv5") for _ in range(2))
    body.keep_frozen_maps(tmp_path)
    before = body(images)["conv4"]
    nn.ModuleDict({"backbone": body}).load_state_dict(nn.ModuleDict({"backbone": other}).state_dict())
    after = body(images)["conv4"]
    torch.testing.assert_close(after, other(images)["conv4"], rtol=1e-4, atol=1e-4 * float(after.detach().abs().max()))
    assert not torch.allclose(before, after, rtol=1e-2)


@pytest.mark.parametrize("network", [deeplab, faster_rcnn])
def test_losses_are_the_same_with_kept_maps(network: object, tmp_path: Path) -> None:
    """Three steps of SGD give the same losses with and without the maps on disk."""

    def losses(keep: bool) -> list[float]:
        torch.manual_seed(0)
        options = {"min_size": 64, "max_size": 64, "anchor_scales": (1, 2)} if network is faster_rcnn else {}
        model = network(3, backbone="resnet50", deform_layers=3, freeze_below="conv5", **options)
        assert isinstance(model.backbone, CaffeResNetBackbone)
        if keep:
            model.backbone.keep_frozen_maps(tmp_path)
        optimiser = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-4)
        images = torch.rand(2, 3, 64, 64)
        target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
        found = []
        for step in range(3):
            torch.manual_seed(step)
            if network is faster_rcnn:
                loss = torch.stack(list(model(list(images), [dict(target), dict(target)]).values())).sum()
            else:
                loss = model(images)["out"].square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    assert losses(keep=True) == pytest.approx(losses(keep=False), rel=1e-4)
    assert any(tmp_path.rglob("*.pkl"))
