from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.models import deeplab

SMALL = {"backbone": "resnet10t", "deform_layers": 2}


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (16, 16)])
def test_scores_every_pixel(size: tuple[int, int]) -> None:
    model = deeplab(4, **SMALL).eval()
    assert model(torch.rand(2, 3, *size))["out"].shape == (2, 4, *size)


def test_upsampling_is_bilinear_and_fixed() -> None:
    upsample = deeplab(3, **SMALL).upsample
    coarse = torch.randn(2, 3, 5, 7)
    exact = F.interpolate(coarse, scale_factor=16, mode="bilinear", align_corners=False)
    inner = (..., slice(8, -8), slice(8, -8))  # at the border the transposed convolution fades to zero
    torch.testing.assert_close(upsample(coarse)[inner], exact[inner])
    assert not any(parameter.requires_grad for parameter in upsample.parameters())


def test_starts_as_its_plain_twin_and_gradients_reach_the_branches() -> None:
    plain, deformable = deeplab(3, **{**SMALL, "deform_layers": 0}), deeplab(3, **SMALL)
    deformable.load_state_dict(plain.state_dict(), strict=False)
    images: Tensor = torch.rand(1, 3, 60, 70)
    torch.testing.assert_close(deformable.eval()(images)["out"], plain.eval()(images)["out"], rtol=1e-4, atol=1e-5)
    target = torch.randint(0, 3, (1, 60, 70))
    F.cross_entropy(deformable.train()(images)["out"], target).backward()
    branches = [p for name, p in deformable.named_parameters() if name.endswith("offset_conv.weight")]
    assert len(branches) == 2
    assert all(branch.grad.abs().sum() > 0 for branch in branches)


def test_parameters_that_deformation_adds() -> None:
    plain, deformable = (
        sum(p.numel() for p in deeplab(21, backbone="resnet50", deform_layers=n).parameters()) for n in (0, 3)
    )
    assert deformable - plain == 3 * (512 * 18 * 9 + 18) == 248_886


def test_config_rebuilds_the_model() -> None:
    model = deeplab(5, **SMALL, offset_groups=2)
    again = deeplab(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2, got 0"):
        deeplab(0, **SMALL)
    with pytest.raises(ValueError, match=r"images must have shape \[N, 3, H, W\], got \[3, 8, 8\]"):
        deeplab(2, **SMALL)(torch.zeros(3, 8, 8))


@pytest.mark.parametrize("size", [(48, 64), (50, 33), (31, 63)])
def test_authors_framing_pads_no_image(size: tuple[int, int]) -> None:
    model = deeplab(3, **SMALL, framing="authors").eval()
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        out = model(images)["out"]
        conv5 = model.backbone((images - model.image_mean) / model.image_std)["conv5"]
        coarse = model.score(F.relu(model.fc6(conv5)))
    whole = F.conv_transpose2d(coarse, model.upsample.weight, stride=16, groups=3)
    torch.testing.assert_close(out, whole[:, :, 8 : 8 + size[0], 8 : 8 + size[1]])
    assert out.shape == (1, 3, *size)


def test_framings_agree_on_sides_of_whole_cells() -> None:
    paper, authors = deeplab(3, **SMALL).eval(), deeplab(3, **SMALL, framing="authors").eval()
    authors.load_state_dict(paper.state_dict())
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(authors(images)["out"], paper(images)["out"])
        assert not torch.allclose(authors(images[:, :, :40])["out"], paper(images[:, :, :40])["out"])
