"""Aligned-Inception-ResNet, the paper's own backbone, whose cells are centred on the pixels that they represent.

A cell of a map of stride s represents pixel s * i of the image, as RoI pooling with a `spatial_scale` of 1/s assumes.
A layer with kernel k, dilation d, stride t and padding p centres its output i on its input t * i - p + d (k - 1) / 2.
The network is *aligned* if these shifts vanish: on every path to a cell the receptive field is centred on its pixel, at
every stride and for every size of the image. Here this holds, because kernels are odd and p = d (k - 1) / 2. In
Inception-ResNet-v2 the layers without padding add up to a shift of 21 pixels at stride 16 and of 37 at stride 32, so a
cell looks at the position of its neighbour.

Dai et al. (2017) describe the network in an appendix and never released it. Where they leave details open, batch norm
follows every convolution here, and the stride of a stage is on its first 1x1 convolutions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from pliant.backbones.caffe_resnet import IMAGE_MEAN, IMAGE_STD
from pliant.backbones.frozen_stages import FrozenStages

BLOCKS = (3, 4, 23, 3)
PLANES = (64, 128, 256, 512)


class InceptionResNetBlock(nn.Module):
    """One 3x3 convolution beside two in sequence, joined by a 1x1 convolution and added to the input.

    Args:
        in_channels: channels of the input.
        planes: p. The branches have p and p/2 channels, the output 4p.
        stride: stride of the block.
        norm_layer: function that builds a norm from its number of channels.

    Shape:
        - Input: `[N, in_channels, H, W]`
        - Output: `[N, 4 * planes, H / stride, W / stride]`, rounded up
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        conv: Any = partial(Conv2dNormActivation, norm_layer=norm_layer)
        half, out_channels = planes // 2, 4 * planes
        self.branch1 = nn.Sequential(conv(in_channels, planes, 1, stride), conv(planes, planes, 3))
        self.branch2 = nn.Sequential(conv(in_channels, half, 1, stride), conv(half, half, 3), conv(half, half, 3))
        self.join = conv(planes + half, out_channels, 1, activation_layer=None)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1, stride, activation_layer=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.join(torch.cat([self.branch1(x), self.branch2(x)], dim=1))
        return self.relu(joined + self.shortcut(x))


class AlignedInceptionResNet(nn.Module):
    """The ImageNet classifier.

    Args:
        num_classes: number of classes.
        frozen: batch norms with fixed statistics and affine parameters (as buffers), as in detectors.
        dilated: conv5 at stride 16 instead of 32.

    Shape:
        - Input: RGB images `[N, 3, H, W]` in 0..255 minus the mean
        - Output: logits `[N, num_classes]`
    """

    def __init__(self, num_classes: int = 1000, *, frozen: bool = False, dilated: bool = False) -> None:
        super().__init__()
        norm_layer: Callable[..., nn.Module] = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        strides = (1, 2, 2, 1 if dilated else 2)
        in_channels = 64
        stages = []
        for blocks, planes, stride in zip(BLOCKS, PLANES, strides, strict=True):
            block: Any = partial(InceptionResNetBlock, norm_layer=norm_layer)
            first = block(in_channels, planes, stride=stride)
            in_channels = 4 * planes
            stages.append(nn.Sequential(first, *(block(in_channels, planes) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class AlignedInceptionResNetBackbone(FrozenStages, AlignedInceptionResNet):
    """The features of conv4 and conv5 at stride 16. Batch norms are fixed; conv1 and conv2_x are not trained.

    Args:
        dilation: dilation of the nine 3x3 convolutions of conv5; 2 keeps the receptive field of stride 32.

    Shape:
        - Input: normalised images `[N, 3, H, W]`
        - Output: `{"conv4": [N, 1024, H / 16, W / 16], "conv5": [N, 2048, H / 16, W / 16]}`
    """

    conv4_channels = 1024
    conv5_channels = 2048
    image_mean: tuple[float, ...] = IMAGE_MEAN
    image_std = IMAGE_STD

    def __init__(self, dilation: int = 2) -> None:
        super().__init__(frozen=True, dilated=True)
        del self.fc, self.avgpool
        for module in self.layer4.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
        self.freeze_below()

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:  # type: ignore[override]
        return self.maps(x)

    def deformable_names(self, layers: int) -> list[str]:
        """The last 3x3 convolutions, three per block, nine in conv5. The paper does not say which it deforms."""
        names = [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and not name.startswith("layer1.")
        ]
        if not 0 <= layers <= len(names):
            raise ValueError(f"deform_layers must be 0 to {len(names)}, got {layers}")
        return names[len(names) - layers :]
