from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

import pliant
from pliant.nn import DeformConv2d, DeformRoIPool

MODELS = {
    "torchvision resnext, groups": lambda: torchvision.models.resnext50_32x4d(),
    "torchvision resnet, dilation": lambda: torchvision.models.resnet50(
        replace_stride_with_dilation=[False, True, True]
    ),
    "timm resnet, stride": lambda: timm.create_model("resnet10t"),
    "timm mobilenet, depthwise": lambda: timm.create_model("mobilenetv3_small_050"),
}


def deformable(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, DeformConv2d)]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_any_model_keeps_its_output_at_step_0_and_comes_back(name: str, modulated: bool) -> None:
    model = MODELS[name]().eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(x)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        assert pliant.deform(model, 4, modulated=modulated) is model
        assert len(deformable(model)) == 4
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
        pliant.undeform(model)
        assert not deformable(model)
        assert torch.equal(model(x), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_where_is_a_pattern_a_predicate_or_a_number() -> None:
    def build() -> nn.Module:
        return torchvision.models.resnet18()

    assert deformable(pliant.deform(build(), "layer4.*.conv2")) == ["layer4.0.conv2", "layer4.1.conv2"]
    chosen = pliant.deform(build(), lambda name, conv: "layer3" in name and conv.stride == (2, 2))
    assert deformable(chosen) == ["layer3.0.conv1", "layer3.0.downsample.0"]
    # the last ones with a kernel larger than 1: the 1x1 downsample does not count
    assert deformable(pliant.deform(build(), 4)) == [f"layer4.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    assert deformable(pliant.deform(build(), 0)) == []


def test_a_second_time_takes_the_next_layers() -> None:
    model = pliant.deform(pliant.deform(torchvision.models.resnet18(), 1), 1)
    assert deformable(model) == ["layer4.1.conv1", "layer4.1.conv2"]


def test_a_single_convolution_and_shared_modules() -> None:
    assert isinstance(pliant.deform(nn.Conv2d(3, 4, 3), 1), DeformConv2d)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    twice = pliant.deform(nn.Sequential(conv, nn.ReLU(), conv), 1)
    assert isinstance(twice[0], DeformConv2d)
    assert twice[0] is twice[2]
    assert twice[0].weight is conv.weight


def test_what_cannot_be_deformed_is_an_error_and_changes_nothing() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean())

    model = nn.Sequential(nn.Conv2d(3, 3, 3), Standardised(3, 3, 3))
    with pytest.raises(ValueError, match="1: Standardised computes more than"):
        pliant.deform(model, 2)
    assert not deformable(model)
    with pytest.raises(ValueError, match="padding_mode must be 'zeros', got 'reflect'"):
        pliant.deform(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), 1)
    with pytest.raises(ValueError, match="where='layer9' matches no plain convolution"):
        pliant.deform(model, "layer9")
    with pytest.raises(ValueError, match="the model has 2 convolutions"):
        pliant.deform(model, 3)
    with pytest.raises(TypeError, match="where must be"):
        pliant.deform(model, 1.5)
    with pytest.raises(ValueError, match="0: offset_groups must divide in_channels 3"):
        pliant.deform(model, "0", offset_groups=2)


def test_param_groups_give_beta_and_spare_biases() -> None:
    model = nn.ModuleDict({"conv": DeformConv2d(2, 2, 3), "pool": DeformRoIPool(2, 3, 1.0), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    groups = pliant.param_groups(
        model, 0.1, weight_decay=5e-4, offset_lr_mult=0.5, lr_mult={"conv.offset_conv.bias": 2.0}
    )
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found == {
        "conv.weight": (0.1, 5e-4),
        "conv.bias": (0.1, 0.0),
        "conv.offset_conv.weight": (0.05, 5e-4),
        "conv.offset_conv.bias": (0.2, 0.0),
        "pool.offset_fc.weight": (pytest.approx(0.001), 5e-4),
        "pool.offset_fc.bias": (pytest.approx(0.001), 0.0),
    }
    torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=r"no parameter matches 'cnv\.\*'"):
        pliant.param_groups(model, 0.1, lr_mult={"cnv.*": 1.0})
