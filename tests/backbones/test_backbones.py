from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from pliant.backbones import CaffeResNet, CaffeResNetBackbone, TimmBackbone, backbone, load_weights
from pliant.nn import DeformConv2d


def deformable(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, DeformConv2d)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    save_file(CaffeResNet(50, num_classes=3).state_dict(), path)
    return path


def test_resnet101_has_the_papers_parameters() -> None:
    model = CaffeResNet(101)
    model.fc = torch.nn.Identity()
    assert sum(parameter.numel() for parameter in model.parameters()) == 42_500_160
    assert [model.layer3[0].conv1.stride, model.layer3[0].conv2.stride] == [(2, 2), (1, 1)]


@pytest.mark.parametrize(("precision", "logits"), [("int8", "logits_int8"), ("fp16", "logits_fp32")])
def test_real_weights_give_the_reference_logits(shared: Path, precision: str, logits: str) -> None:
    reference = numpy.load(shared / "weights" / "reference_logits.npz")
    model = CaffeResNet(50, padded_pool=True).eval()
    load_weights(model, shared / "weights" / f"resnet50_imagenet_{precision}.pth")
    with torch.no_grad():
        out = model(torch.from_numpy(reference["input_224"]).float())
    expected = torch.from_numpy(reference[logits]).float()
    assert torch.equal(out.argmax(1), expected.argmax(1))
    tolerance = 1e-3 if precision == "int8" else 0.05
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


def test_backbone_loads_classifier_weights_and_stays_at_stride_16(weights: Path) -> None:
    body = backbone("resnet50", weights=weights, deform_layers=0)
    features = body(torch.randn(1, 3, 96, 64))
    assert features["conv4"].shape == (1, 1024, 6, 4)
    assert features["conv5"].shape == (1, 2048, 6, 4)
    classifier = CaffeResNet(50, num_classes=3)
    load_weights(classifier, weights)
    assert torch.equal(body.layer4[2].conv3.weight, classifier.layer4[2].conv3.weight)
    assert [block.conv2.dilation for block in body.layer4] == [(2, 2)] * 3


def test_conv1_conv2_and_all_batch_norms_stay_as_they_are() -> None:
    body = backbone("resnet50", deform_layers=3).train()
    before = {name: value.clone() for name, value in body.state_dict().items() if "running" in name}
    sum(value.mean() for value in body(torch.randn(2, 3, 64, 64)).values()).backward()
    trained = [name for name, parameter in body.named_parameters() if parameter.grad is not None]
    assert not any(name.startswith(("conv1", "bn1", "layer1")) or ".bn" in name for name in trained)
    assert "layer4.2.conv2.offset_conv.weight" in trained
    assert all(torch.equal(body.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (0, []),
        (1, ["layer4.2"]),
        (2, ["layer4.1", "layer4.2"]),
        (3, ["layer4.0", "layer4.1", "layer4.2"]),
        (6, ["layer3.3", "layer3.4", "layer3.5", "layer4.0", "layer4.1", "layer4.2"]),
    ],
)
def test_the_papers_choice_of_deformable_layers(layers: int, names: list[str]) -> None:
    assert deformable(backbone("resnet50", deform_layers=layers)) == [f"{name}.conv2" for name in names]


def test_another_mean_colour() -> None:
    assert backbone("resnet50", image_mean=[0.5, 0.4, 0.3]).image_mean == (0.5, 0.4, 0.3)
    with pytest.raises(ValueError, match=r"for the paper's networks, not for resnet10t: image_mean=\[0.5, 0.4, 0.3\]"):
        backbone("resnet10t", image_mean=[0.5, 0.4, 0.3])


def test_dilation_of_conv5() -> None:
    body = backbone("resnet50", dilation=6)
    assert isinstance(body, CaffeResNetBackbone)
    assert all(block.conv2.dilation == block.conv2.padding == (6, 6) for block in body.layer4)
    assert body(torch.randn(1, 3, 64, 64))["conv5"].shape[2:] == (4, 4)


def test_timm_backbones_have_the_same_interface() -> None:
    body = backbone("timm/resnet10t", deform_layers=2)
    assert isinstance(body, TimmBackbone)
    assert len(deformable(body)) == 2
    features = body.train()(torch.randn(1, 3, 64, 96))
    assert features["conv4"].shape == (1, body.conv4_channels, 4, 6)
    assert features["conv5"].shape == (1, body.conv5_channels, 4, 6)
    assert body.image_mean == (0.485, 0.456, 0.406)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in body.modules())
    # timm starts the last norm of a residual block at zero; fixed, it would stop all gradients
    features["conv5"].sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in body.named_parameters() if name.endswith("offset_conv.weight"))
    free = backbone("resnet10t", frozen=False)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in free.modules())


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_100"])
def test_timm_backbones_take_a_dilation(name: str) -> None:
    for dilation in (2, 6):
        body = backbone(name, dilation=dilation)
        dilations = {conv.dilation for conv in body.modules() if isinstance(conv, torch.nn.Conv2d)}
        assert dilations == {(1, 1), (dilation, dilation)}
        assert body(torch.rand(1, 3, 64, 96))["conv5"].shape[2:] == (4, 6)


def test_wrong_names_and_numbers_are_errors() -> None:
    with pytest.raises(ValueError, match=r"deform_layers must be 0, 1, 2, 3 or 6, got 4"):
        backbone("resnet50", deform_layers=4)
    with pytest.raises(
        ValueError,
        match=r"aligned_inception_resnet or a timm model after timm/, got 'resnet51'; did you mean 'resnet50'",
    ):
        backbone("resnet51")
    with pytest.raises(ValueError, match="for the paper's networks"):
        backbone("resnet10t", padded_pool=True)
    with pytest.raises(ValueError, match="depth must be one of 50, 101, got 18"):
        CaffeResNet(18)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(weights: Path, tmp_path: Path) -> None:
    model = CaffeResNet(50, num_classes=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"fc.weight has shape \[3, 2048\], expected \[4, 2048\]"):
        load_weights(model, weights)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "other": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"missing bn1.weight \[64\].*more"):
        load_weights(model, tmp_path / "part.pth")
    with pytest.raises(FileNotFoundError, match=r"none.pth: there is no such file of weights"):
        load_weights(model, tmp_path / "none.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("deviation", [False, True])
def test_a_resnet_of_torchvisions_is_told_apart_by_its_first_layer(tmp_path: Path, deviation: bool) -> None:
    """Statistics of the first layer on images as each of the two sees them."""
    model = CaffeResNet(50, num_classes=3).train()
    smooth = torch.nn.functional.interpolate(torch.randn(2, 3, 8, 8), size=64, mode="bilinear")
    model.bn1.momentum = 1.0
    model.bn1(model.conv1(smooth if deviation else smooth * 58))
    torch.save(model.state_dict(), tmp_path / "resnet50.pth")
    if not deviation:
        backbone("resnet50", weights=tmp_path / "resnet50.pth")
        return
    with pytest.raises(ValueError, match=r"Use backbone=timm/resnet50 or timm/resnet101 with this file"):
        backbone("resnet50", weights=tmp_path / "resnet50.pth")


@pytest.mark.parametrize("nested", [False, True])
def test_timm_takes_torchvisions_file(tmp_path: Path, nested: bool) -> None:
    theirs = torchvision.models.resnet50(num_classes=7).eval()
    state = theirs.state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "resnet50.pth")
    body = backbone("timm/resnet50", weights=tmp_path / "resnet50.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        conv4 = theirs.layer3(theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))))
        torch.testing.assert_close(body(x)["conv4"], conv4)
    assert torch.equal(body.body.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])


def test_timm_file_that_does_not_fit(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t", num_classes=2).state_dict()
    state["extra"] = state.pop("layer1.0.bn1.weight")
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"a.pth does not fit resnet10t: missing layer1.0.bn1.weight \[64\]; unknown ext"
    ):
        backbone("timm/resnet10t", weights=tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match=r"none.pth: there is no such file of weights"):
        backbone("timm/resnet10t", weights="none.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.backbone."])
def test_weights_after_a_prefix(weights: Path, tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in CaffeResNet(50, num_classes=3).state_dict().items()}
    torch.save({"model": state, "epoch": 1}, tmp_path / "a.pth")
    assert torch.equal(
        backbone("resnet50", weights=tmp_path / "a.pth").layer4[2].conv3.weight, state[f"{prefix}layer4.2.conv3.weight"]
    )
    theirs = {f"{prefix}{name}": value for name, value in timm.create_model("resnet10t").state_dict().items()}
    torch.save(theirs, tmp_path / "b.pth")
    body = backbone("timm/resnet10t", weights=tmp_path / "b.pth")
    assert torch.equal(body.body.layer4[0].conv2.weight, theirs[f"{prefix}layer4.0.conv2.weight"])
