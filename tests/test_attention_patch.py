"""Tiny random models of transformers with and without the patch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant import _patch, attention_patch
from pliant.ops import _native

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _no_patch_is_left() -> Iterator[None]:
    yield
    assert not _patch.lasts("attention of transformers")
    assert not attention_patch._originals


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the compiled kernels, as they are called."""
    names: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            names.append(name)
            return getattr(real, name)

    real = _native.kernels
    monkeypatch.setattr(_native, "kernels", Watched())
    return names


def resnet(model_type: str) -> Any:
    config = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"}
    return transformers.CONFIG_MAPPING[model_type](**config, out_features=["stage2", "stage3", "stage4"])


def deformable_detr() -> nn.Module:
    return transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone_config=resnet("resnet"),
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=7,
            num_feature_levels=3,
        )
    )


DECODER = {
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 8, 8],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_in_channels": [16, 16, 16],
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "num_queries": 7,
    "num_denoising": 0,
}


def rt_detr() -> nn.Module:
    config = transformers.RTDetrConfig(backbone_config=resnet("rt_detr_resnet"), **DECODER)
    return transformers.RTDetrForObjectDetection(config)


def rt_detr_v2(method: str = "default") -> nn.Module:
    config = transformers.RTDetrV2Config(
        backbone_config=resnet("rt_detr_resnet"), **DECODER, decoder_method=method, decoder_n_levels=3
    )
    return transformers.RTDetrV2ForObjectDetection(config)


def d_fine() -> nn.Module:
    config = transformers.DFineConfig(
        backbone_config=resnet("rt_detr_resnet"), **DECODER, decoder_n_points=[3, 6, 2], decoder_method="default"
    )
    return transformers.DFineForObjectDetection(config)


def mask2former() -> nn.Module:
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=7,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "deformable_detr": deformable_detr,
    "rt_detr": rt_detr,
    "rt_detr_v2": rt_detr_v2,
    "d_fine": d_fine,
    "mask2former": mask2former,
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def run(model: nn.Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    # Two images: for one, the gradient of batch_norm in evaluation mode is wrong in torch 2.14 for some strides.
    found = model(torch.rand(2, 3, 64, 96))
    if "logits" in found:
        return found.logits, found.pred_boxes
    return found.class_queries_logits, found.masks_queries_logits


@pytest.mark.parametrize("name", MODELS)
def test_the_same_detections_and_gradients_on_our_kernels(name: str, calls: list[str]) -> None:
    want = run(model := built(MODELS[name]))
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slopes = torch.autograd.grad(sum(each.square().sum() for each in want), wanted, allow_unused=True)
    assert not calls
    with pliant.patch_transformers():
        got = run(model := built(MODELS[name]))
        assert set(calls) == {"ms_deform_attn"}
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ours = torch.autograd.grad(sum(each.square().sum() for each in got), wanted, allow_unused=True)
        assert "ms_deform_attn_backward" in calls
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    largest = max(float(slope.abs().max()) for slope in slopes if slope is not None)
    for left, right in zip(ours, slopes, strict=True):
        if right is not None:
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * largest)
    calls.clear()
    for left, right in zip(run(model), want, strict=True):  # also D-FINE's, which was built with the patch
        assert torch.equal(left, right)
    assert not calls


def test_models_that_exist_are_served_and_patches_may_be_nested(calls: list[str]) -> None:
    model = built(rt_detr)
    first, second = pliant.patch_transformers(), pliant.patch_transformers()
    first.undo()
    first.undo()
    calls.clear()
    run(model)
    assert calls
    second.undo()
    calls.clear()
    run(model)
    assert not calls


def test_modules_that_are_imported_later_are_patched() -> None:
    name = "transformers.models.omdet_turbo.modeling_omdet_turbo"
    with pliant.patch_transformers():
        module = __import__(name, fromlist=["MultiScaleDeformableAttention"])
        assert module.MultiScaleDeformableAttention.forward in attention_patch._replacements
    assert module.MultiScaleDeformableAttention.forward.__module__ == name
    assert not hasattr(module.MultiScaleDeformableAttention.forward, "__wrapped__")


def test_what_is_not_the_operator_stays_theirs(calls: list[str]) -> None:
    with pliant.patch_transformers():
        calls.clear()  # of the small examples
        run(built(lambda: rt_detr_v2("discrete")))
    assert not calls


def test_autocast_has_their_dtypes(calls: list[str]) -> None:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    attention = MultiScaleDeformableAttention()
    shapes = [(3, 4), (2, 2)]
    value, locations = torch.randn(1, 16, 2, 4).bfloat16(), torch.rand(1, 5, 2, 2, 3, 2)
    arguments = value, torch.tensor(shapes), shapes, torch.tensor([0, 12]), locations, torch.rand(1, 5, 2, 2, 3), 64
    with torch.autocast("cpu", torch.bfloat16):
        want = attention(*arguments)
        with pliant.patch_transformers():
            got = attention(*arguments)
    assert calls
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_says_why_it_would_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with _native.use(_native.REFERENCE), pytest.raises(RuntimeError, match="would gain nothing"):
        pliant.patch_transformers()
    attention_patch._modules_with_attention.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install transformers"):
        pliant.patch_transformers()


def test_a_form_with_other_parameters_is_left_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    run(built(rt_detr))
    module = sys.modules["transformers.models.rt_detr.modeling_rt_detr"]

    class MultiScaleDeformableAttention:
        def forward(
            self, value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor,
            temperature: float,
        ) -> Tensor:  # fmt: skip
            return value

    MultiScaleDeformableAttention.__module__ = module.__name__
    monkeypatch.setattr(module, "MultiScaleDeformableAttention", MultiScaleDeformableAttention)
    with pytest.warns(UserWarning, match="leaves transformers.models.rt_detr"), pliant.patch_transformers():
        assert not hasattr(MultiScaleDeformableAttention.forward, "__wrapped__")
