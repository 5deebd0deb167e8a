"""DeepLab of the paper: dense scores on dilated or deformable conv5 features, upsampled bilinearly."""

from __future__ import annotations

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.backbones import Backbone, BackboneOptions
from pliant.backbones import backbone as build_backbone
from pliant.models.detector import arguments
from pliant.models.hub import OnHub, builds
from pliant.models.transform import check_framing

STRIDE = 16


class DeepLab(nn.Module, OnHub):
    """DeepLab, as built by `deeplab`. The arguments that built it are in `config`.

    It has the interface of torchvision's segmenters. Sides that are not a multiple of 16 are padded with the mean
    colour at the right and bottom, and the scores are cropped; the authors' framing does not pad.

    Shape:
        - Input: images `[N, 3, H, W]` in 0..1
        - Output: `{"out": [N, num_classes, H, W]}`

    Examples:
        >>> model = pliant.models.deeplab(num_classes=3, backbone="timm/test_resnet").eval()
        >>> model(torch.rand(1, 3, 60, 80))["out"].argmax(dim=1).shape
        torch.Size([1, 60, 80])
    """

    config: dict[str, Any]
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, body: Backbone, channels: int, num_classes: int, framing: str = "paper") -> None:
        super().__init__()
        check_framing(framing)
        self.framing = framing
        self.backbone = body
        self.fc6 = nn.Conv2d(channels, 1024, 1)
        self.score = nn.Conv2d(1024, num_classes, 1)
        self.upsample = _bilinear_upsampling(num_classes, STRIDE, cut=framing == "paper")
        self.register_buffer("image_mean", torch.tensor(body.image_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(body.image_std).view(-1, 1, 1), persistent=False)
        for layer in (self.fc6, self.score):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape [N, 3, H, W], got {list(images.shape)}")
        height, width = images.shape[2:]
        x = (images - self.image_mean) / self.image_std
        first = STRIDE // 2
        if self.framing == "paper":
            first = 0
            x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))
        scores = self.upsample(self.score(F.relu(self.fc6(self.backbone(x)["conv5"]))))
        rows, columns = scores.shape[2:]
        return {"out": F.pad(scores, (-first, first + width - columns, -first, first + height - rows))}


@builds(DeepLab)
def deeplab(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    deform_layers: int = 3,
    framing: str = "paper",
    **options: Unpack[BackboneOptions],
) -> DeepLab:
    """DeepLab without refinements (Chen et al. 2015), as in Dai et al. (2017), section 2.3.

    The network has conv5 features at stride 16, a 1x1 convolution to 1024 channels, 1x1 scores, and fixed bilinear
    upsampling by 16.

    Args:
        num_classes: number of classes, background included.
        backbone, deform_layers: see `pliant.backbones.backbone`.
        framing: `"paper"` pads images to a multiple of 16; `"authors"` does not pad, and crops the scores as the
            authors do.
        options: `weights`, `dilation` and other arguments of `pliant.backbones.backbone`.

    Raises:
        ValueError: if an argument is out of its range, or the backbone cannot have these layers.

    Examples:
        >>> model = pliant.models.deeplab(num_classes=3, backbone="timm/test_resnet")
        >>> model(torch.rand(2, 3, 64, 64))["out"].shape
        torch.Size([2, 3, 64, 64])
    """
    config = arguments(locals(), options)
    body = build_backbone(backbone, deform_layers=deform_layers, **options)
    model = DeepLab(body, body.conv5_channels, num_classes, framing)
    model.config = config
    return model


def _bilinear_upsampling(channels: int, factor: int, *, cut: bool) -> nn.ConvTranspose2d:
    """A fixed transposed convolution that interpolates each channel bilinearly by `factor`.

    Without `cut` its output begins and ends half a `factor` outside the input.
    """
    padding = factor // 2 if cut else 0
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=padding, groups=channels, bias=False
    )
    distance = (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    line = 1 - distance
    layer.weight.data.copy_((line.unsqueeze(1) * line).expand_as(layer.weight))
    return layer.requires_grad_(False)
