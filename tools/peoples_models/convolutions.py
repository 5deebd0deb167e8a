"""Models whose deformable convolution is torchvision's, or is written in PyTorch."""

from __future__ import annotations

import importlib
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from measure import Entry, replaced, tensors
from torch import Tensor, nn

import pliant


def _edvr() -> nn.Module:
    """EDVR with its default sizes: 64 features, 5 frames."""
    _name_former_module()
    from basicsr.archs.edvr_arch import EDVR  # type: ignore[import-not-found]

    return EDVR(num_extract_block=1, num_reconstruct_block=1)


def _basicvsr() -> nn.Module:
    """BasicVSR++ with 64 features, and one residual block in each branch instead of seven."""
    _name_former_module()
    from basicsr.archs.basicvsrpp_arch import BasicVSRPlusPlus  # type: ignore[import-not-found]

    return BasicVSRPlusPlus(num_blocks=1)


def _name_former_module() -> None:
    """BasicSR imports a module of torchvision by the name that it had until version 0.16."""
    module = importlib.import_module("torchvision.transforms._functional_tensor")
    sys.modules["torchvision.transforms.functional_tensor"] = module


def _birefnet() -> nn.Module:
    """BiRefNet with Swin-T instead of Swin-L."""
    from nobg.birefnet.modeling_birefnet import BiRefNet, BiRefNetConfig  # type: ignore[import-not-found]

    config = BiRefNetConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
    return BiRefNet(config)


def _centernet() -> nn.Module:
    """CenterNet with ResNet-18, whose upsampling is deformable."""
    from libreyolo.models.centernet.nn import build_centernet  # type: ignore[import-not-found]

    return build_centernet("resdcn18")


def _tablecenternet() -> nn.Module:
    """TableCenterNet, whose deformable convolution is a `grid_sample` and a convolution for each of nine points."""
    from doctr.models import tablecenternet  # type: ignore[import-not-found]

    return tablecenternet(pretrained=False, pretrained_backbone=False, exportable=True)


def _in_doctr() -> AbstractContextManager[Any]:
    layers = importlib.import_module("doctr.models.modules.layers.pytorch")
    return replaced(layers, "_deform_conv2d", pliant.ops.deform_conv2d)


def _on(*shape: int) -> dict[str, Any]:
    """What a model computes from one input, and a loss of all that."""

    def outputs(model: nn.Module, dtype: torch.dtype) -> Any:
        return model(torch.rand(shape, dtype=dtype))

    def loss(model: nn.Module, dtype: torch.dtype) -> Tensor:
        return torch.stack([part.square().mean() for part in tensors(outputs(model, dtype))]).sum()

    return {"outputs": outputs, "loss": loss, "input": "×".join(map(str, shape))}


_TORCHVISION: dict[str, Any] = {"line": "pliant.patch_torchvision()", "ours": pliant.patch_torchvision}
_DOCTR: dict[str, Any] = {
    "line": "doctr.models.modules.layers.pytorch._deform_conv2d = pliant.ops.deform_conv2d",
    "ours": _in_doctr,
    "baseline": "its own, by grid_sample",
}

ENTRIES = [
    Entry("EDVR", ("basicsr",), build=_edvr, **_on(1, 5, 3, 32, 48), **_TORCHVISION),
    Entry("BasicVSR++", ("basicsr",), build=_basicvsr, **_on(1, 2, 3, 64, 64), **_TORCHVISION),
    Entry("BiRefNet, Swin-T", ("nobg", "transformers"), build=_birefnet, **_on(2, 3, 128, 128), **_TORCHVISION),
    Entry("CenterNet, ResNet-18", ("libreyolo",), build=_centernet, **_on(1, 3, 128, 128), **_TORCHVISION),
    Entry("TableCenterNet", ("python-doctr",), build=_tablecenternet, **_on(1, 3, 96, 96), **_DOCTR),
]
