"""Image classifiers: the networks that backbones are taken from, trained as on ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from pliant.backbones import AlignedInceptionResNet, CaffeResNet, deform_last, load_weights
from pliant.backbones.caffe_resnet import DEPTHS, IMAGE_MEAN, IMAGE_STD
from pliant.backbones.timm_backbone import timm_model, undo_zero_init
from pliant.models.detector import check_arguments
from pliant.models.hub import OnHub, builds

_ALIGNED = "aligned_inception_resnet"


class Classifier(nn.Module, OnHub):
    """A classifier, as built by `classifier`. The arguments that built it are in `config`.

    Its weights can be loaded as the weights of a detector's backbone of the same name.

    Shape:
        - Input: images `[N, 3, H, W]` in 0..1
        - Output: logits `[N, num_classes]`

    Examples:
        >>> model = pliant.models.classifier(num_classes=10, backbone="timm/test_resnet").eval()
        >>> model(torch.rand(2, 3, 64, 64)).softmax(dim=1).shape
        torch.Size([2, 10])
    """

    config: dict[str, Any]
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, network: nn.Module, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = network
        self.register_buffer("image_mean", torch.tensor(image_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape [N, 3, H, W], got {list(images.shape)}")
        return self.backbone((images - self.image_mean) / self.image_std)


@builds(Classifier)
def classifier(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    weights: str | Path | None = None,
    frozen: bool = False,
    deform_layers: int = 0,
    padded_pool: bool = False,
    offset_groups: int = 1,
    modulated: bool = False,
    border: str = "paper",
    offset_dilation: int | None = None,
    image_mean: Sequence[float] | None = None,
) -> Classifier:
    """A classifier of stride 32 whose last layers are deformable.

    Args:
        num_classes: number of classes, without a background.
        backbone, padded_pool, offset_groups, modulated, border, offset_dilation, image_mean: see
            `pliant.backbones.backbone`.
        weights: see `pliant.backbones.backbone`. The last layer is initialised anew.
        frozen: whether batch norms are fixed.
        deform_layers: number of deformable layers, the last convolutions with a kernel larger than 1.

    Raises:
        ValueError: if an argument is out of its range, or the backbone cannot have these layers.

    Examples:
        >>> model = pliant.models.classifier(num_classes=10, backbone="timm/test_resnet", deform_layers=2)
        >>> sum(isinstance(layer, pliant.nn.DeformConv2d) for layer in model.modules())
        2
    """
    config = {name: value for name, value in locals().items() if name != "weights"}
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    check_arguments(config)
    options: dict[str, Any] = {
        "offset_groups": offset_groups,
        "modulated": modulated,
        "border": border,
        "offset_dilation": offset_dilation,
    }
    if backbone in DEPTHS or backbone == _ALIGNED:
        network = _paper_network(backbone, num_classes, frozen, padded_pool)
        deform_last(network, backbone, deform_layers, **options)
        if weights is not None:
            _load_below(network, weights)
        model = Classifier(network, image_mean or IMAGE_MEAN, IMAGE_STD)
    else:
        if padded_pool or image_mean is not None:
            raise ValueError(
                f"padded_pool={padded_pool}, image_mean={image_mean} are for the paper's networks, not for {backbone}"
            )
        network = _timm_network(backbone, num_classes, weights, frozen)
        deform_last(network, backbone, deform_layers, **options)
        model = Classifier(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    model.config = config
    return model


def _paper_network(name: str, num_classes: int, frozen: bool, padded_pool: bool) -> Any:
    if name in DEPTHS:
        return CaffeResNet(DEPTHS[name], num_classes, frozen=frozen, padded_pool=padded_pool)
    if padded_pool:
        raise ValueError(f"padded_pool=True is for the paper's ResNets; the first pooling of {name} always has padding")
    return AlignedInceptionResNet(num_classes, frozen=frozen)


def _load_below(network: Any, weights: str | Path) -> None:
    """Load all layers but the last, whose classes may differ."""
    last, network.fc = network.fc, nn.Identity()
    load_weights(network, weights)
    network.fc = last


def _timm_network(name: str, num_classes: int, weights: str | Path | None, frozen: bool) -> Any:
    network: Any = timm_model(name, weights, num_classes=num_classes)
    if not frozen:
        return network
    if weights is None:
        undo_zero_init(network)
    return freeze_batch_norm_2d(network)
