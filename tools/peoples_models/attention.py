"""Models of `transformers` and of `rfdetr` with multi-scale deformable attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from measure import Entry
from torch import Tensor, nn

import pliant

STAGES = ["stage2", "stage3", "stage4"]
CLASSES = 80


def _deformable_detr() -> nn.Module:
    """Deformable DETR as published: ResNet-50, four maps, six layers of encoder and decoder."""
    import transformers

    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(out_features=STAGES),
        num_labels=CLASSES,
    )
    return transformers.DeformableDetrForObjectDetection(config)


def _by_default(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A detector with its default configuration, except some options."""

    def build() -> nn.Module:
        import transformers

        config: Any = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
        model: nn.Module = getattr(transformers, f"{name}ForObjectDetection")(config)
        return model

    return build


def _mask2former() -> nn.Module:
    """Mask2Former as published, with Swin-T: six layers of its pixel decoder attend to maps."""
    import transformers

    backbone = transformers.SwinConfig(out_features=["stage1", *STAGES])
    config = transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=CLASSES)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _oneformer() -> nn.Module:
    """OneFormer with Swin-T, without its text encoder, which only training reads."""
    import transformers

    backbone = transformers.SwinConfig(out_features=["stage1", *STAGES])
    config = transformers.OneFormerConfig(backbone_config=backbone, num_labels=CLASSES, is_training=False)
    return transformers.OneFormerForUniversalSegmentation(config)


def _detector(height: int, width: int) -> dict[str, Any]:
    """Logits and boxes of an image; in training, the loss for two objects, which their queries are matched to."""

    def outputs(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        found = model(torch.rand(1, 3, height, width, dtype=dtype))
        return [found.logits, found.pred_boxes]

    def loss(model: nn.Module, dtype: torch.dtype) -> Tensor:
        boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.6, 0.5, 0.4, 0.3]], dtype=dtype)
        labels = [{"class_labels": torch.tensor([1, 3]), "boxes": boxes}]
        return model(torch.rand(1, 3, height, width, dtype=dtype), labels=labels).loss  # type: ignore[no-any-return]

    return {"outputs": outputs, "loss": loss, "input": f"1×3×{height}×{width}"}


def _segmenter(height: int, width: int, **more: Tensor) -> dict[str, Any]:
    """Classes and masks of an image, and their mean square in training."""

    def outputs(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        found = model(torch.rand(1, 3, height, width, dtype=dtype), **more)
        return [found.class_queries_logits, found.masks_queries_logits]

    def loss(model: nn.Module, dtype: torch.dtype) -> Tensor:
        return torch.stack([part.square().mean() for part in outputs(model, dtype)]).sum()

    return {"outputs": outputs, "loss": loss, "input": f"1×3×{height}×{width}"}


def _rfdetr() -> nn.Module:
    """RF-DETR Nano of Roboflow's own package."""
    from rfdetr.config import RFDETRNanoConfig  # type: ignore[import-not-found]
    from rfdetr.models.lwdetr import build_model_from_config  # type: ignore[import-not-found]

    model: nn.Module = build_model_from_config(RFDETRNanoConfig(pretrain_weights=None, device="cpu"))
    return model


def _plain(height: int, width: int) -> dict[str, Any]:
    """All that a detector computes, and the mean square of logits and boxes in training."""

    def outputs(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        found = model(torch.rand(1, 3, height, width, dtype=dtype))
        return [found["pred_logits"], found["pred_boxes"]]

    def loss(model: nn.Module, dtype: torch.dtype) -> Tensor:
        return torch.stack([part.square().mean() for part in outputs(model, dtype)]).sum()

    return {"outputs": outputs, "loss": loss, "input": f"1×3×{height}×{width}"}


_ROW: dict[str, Any] = {
    "packages": ("transformers",),
    "line": "pliant.patch_transformers()",
    "ours": pliant.patch_transformers,
    "baseline": "grid_sample",
}
_RFDETR: dict[str, Any] = {
    "packages": ("rfdetr",),
    "line": 'pliant.patch_attention("rfdetr")',
    "ours": functools.partial(pliant.patch_attention, "rfdetr"),
    "baseline": "grid_sample",
}

ENTRIES = [
    Entry("Deformable DETR", build=_deformable_detr, **_detector(192, 256), **_ROW),
    Entry("RT-DETR", build=_by_default("RTDetr"), **_detector(224, 224), **_ROW),
    Entry("RT-DETRv2", build=_by_default("RTDetrV2"), **_detector(224, 224), **_ROW),
    Entry("D-FINE", build=_by_default("DFine"), **_detector(224, 224), **_ROW),
    Entry("RF-DETR", build=_by_default("RfDetr"), **_detector(336, 336), **_ROW),
    Entry("RF-DETR Nano, rfdetr", build=_rfdetr, **_plain(384, 384), **_RFDETR),
    Entry("Mask2Former, Swin-T", build=_mask2former, **_segmenter(128, 192), **_ROW),
    Entry("OneFormer, Swin-T", build=_oneformer, **_segmenter(128, 192, task_inputs=torch.zeros(1, 77)), **_ROW),
]
