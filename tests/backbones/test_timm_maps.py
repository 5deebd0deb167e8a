"""timm's families as backbones of stride 16 and as pyramids: dilated, cut, with maps of channels last, or refused."""

from __future__ import annotations

import pytest
import timm
import torch

from pliant.backbones import backbone
from pliant.backbones.pyramid import pyramid
from pliant.backbones.timm_maps import find_maps
from pliant.nn import DeformConv2d

# The model, whether timm dilates it, how many levels its maps are of, and the multiple that images are padded to.
FORMS = [
    ("test_byobnet", True, 2, 1),
    ("test_convnext", True, 2, 16),
    ("test_efficientnet", True, 2, 1),
    ("starnet_s050", False, 1, 1),
    ("test_mambaout", False, 1, 1),  # [N, H, W, C]
    ("test_vit", False, 2, 16),
]


@pytest.mark.parametrize(("name", "dilated", "levels", "multiple"), FORMS)
def test_maps_of_stride_16_for_images_of_any_size(name: str, dilated: bool, levels: int, multiple: int) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    body = backbone(f"timm/{name}").eval()
    assert ("output_stride" in body.maps.options) is dilated
    assert (len(set(body.maps.levels)), body.maps.multiple) == (levels, multiple)
    for height, width in ((64, 96), (80, 48), (61, 99)):
        with torch.no_grad():
            features = body(torch.rand(2, 3, height, width))
        size = (-(-height // 16), -(-width // 16))
        assert features["conv4"].shape == (2, body.conv4_channels, *size)
        assert features["conv5"].shape == (2, body.conv5_channels, *size)


def test_what_is_padded_and_cut_off_again_is_what_the_model_gives() -> None:
    body = backbone("timm/test_convnext").eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        *_, conv4, conv5 = body.body(x)
        features = body(x)
        padded = body(x[:, :, :50, :90])
        x[:, :, 50:], x[:, :, :, 90:] = 0, 0
        assert torch.equal(padded["conv5"], body(x)["conv5"])
    assert torch.equal(features["conv4"], conv4)
    assert torch.equal(features["conv5"], conv5)


def test_layers_with_the_padding_of_tensorflow_become_deformable() -> None:
    body = backbone("timm/tf_mobilenetv3_small_minimal_100").eval()
    x = torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        before = body(x)
        torch.manual_seed(0)
        deformed = backbone("timm/tf_mobilenetv3_small_minimal_100", deform_layers=3).eval()
        deformed.load_state_dict(body.state_dict(), strict=False)
        after = deformed(x)
    assert sum(isinstance(module, DeformConv2d) for module in deformed.modules()) == 3
    torch.testing.assert_close(after["conv5"], before["conv5"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("test_vit", 3, "deform_layers must be 0 to 1 for timm/test_vit, got 3: only its last 1 conv"),
        ("test_nfnet", 1, "deform_layers must be 0 to 0 for timm/test_nfnet, got 1: only its last 0 conv"),
        ("test_byobnet", -1, "deform_layers must be 0 to 6 for timm/test_byobnet, got -1"),
        ("xcit_nano_12_p8_224", 0, r"no maps of stride 16 .* \(its maps have strides 8, 8, 8\); docs/your-model.md"),
        ("ghostnet_050.none", 0, r"timm: Invalid pretrained tag \(none\)"),
    ],
)
def test_what_a_model_cannot_have_is_one_sentence(name: str, layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        backbone(f"timm/{name}", deform_layers=layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [AssertionError(), TypeError("a\nb"), NotImplementedError("no")])
def test_whatever_timm_raises_is_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", create)
    said = str(error).split("\n")[0] or "AssertionError"
    with pytest.raises(ValueError, match=rf"timm/one has no maps of stride 16 .*\(timm: {said}\); docs/your-model.md"):
        find_maps("one", (16, 16))


def test_pyramids_know_their_stages_whatever_timm_calls_them() -> None:
    for name in ("test_mambaout", "cspnext_tiny"):
        if not timm.is_model(name):
            continue
        model = pyramid(f"timm/{name}").eval()
        with torch.no_grad():
            maps = model(torch.rand(1, 3, 64, 96))
        assert [tuple(each.shape[1:]) for each in maps.values()] == [
            (count, 64 // stride, 96 // stride) for count, stride in zip(model.channels, (4, 8, 16, 32), strict=True)
        ]
        trained = {parameter for parameter, value in model.named_parameters() if value.requires_grad}
        later = {parameter for parameter, _ in model.named_parameters() if parameter.startswith(model.stages[1:])}
        assert trained == later != set()
    with pytest.raises(ValueError, match="timm/test_vit has no maps of stride 4, 8, 16, 32"):
        pyramid("timm/test_vit")
