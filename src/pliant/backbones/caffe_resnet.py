"""The paper's ResNets, in the form of He et al.'s Caffe models, with torchvision's blocks and names.

They differ from torchvision's in three ways: the stride of a stage is on its first 1x1 convolution, the first pooling
has no padding and rounds up, and images are RGB in 0..255 minus a mean, not divided by a standard deviation.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from pliant.backbones.frozen_stages import FrozenStages

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEPTHS = {f"resnet{depth}": depth for depth in BLOCKS}
# For images in 0..1, equivalent to subtracting 123.68, 116.779, 103.939 from 0..255.
IMAGE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
IMAGE_STD = (1 / 255, 1 / 255, 1 / 255)


class CaffeBottleneck(Bottleneck):
    """torchvision's bottleneck with the stride on the first 1x1 convolution."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


class CaffeResNet(ResNet):
    """The ImageNet classifier.

    Args:
        depth: 50 or 101.
        num_classes: number of classes.
        frozen: batch norms with fixed statistics and affine parameters (as buffers), as in detectors.
        dilated: conv5 at stride 16 instead of 32.
        padded_pool: pad the first pooling by one cell on each side, as in Keras' port of these weights. Caffe does not.

    Shape:
        - Input: RGB images `[N, 3, H, W]` in 0..255 minus the mean
        - Output: logits `[N, num_classes]`
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        *,
        frozen: bool = False,
        dilated: bool = False,
        padded_pool: bool = False,
    ) -> None:
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth}")
        super().__init__(
            CaffeBottleneck,
            list(BLOCKS[depth]),
            num_classes=num_classes,
            replace_stride_with_dilation=[False, False, dilated],
            norm_layer=FrozenBatchNorm2d if frozen else nn.BatchNorm2d,
        )
        if not padded_pool:
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)


class CaffeResNetBackbone(FrozenStages, CaffeResNet):
    """The features of conv4 and conv5 at stride 16. Batch norms are fixed; conv1 and conv2_x are not trained.

    Args:
        depth: 50 or 101.
        dilation: dilation of the three 3x3 convolutions of conv5; 2 keeps the receptive field of stride 32.
        padded_pool: see `CaffeResNet`.

    Shape:
        - Input: normalised images `[N, 3, H, W]`
        - Output: `{"conv4": [N, 1024, H / 16, W / 16], "conv5": [N, 2048, H / 16, W / 16]}`
    """

    conv4_channels = 1024
    conv5_channels = 2048
    image_mean: tuple[float, ...] = IMAGE_MEAN
    image_std = IMAGE_STD

    def __init__(self, depth: int, dilation: int = 2, *, padded_pool: bool = False) -> None:
        super().__init__(depth, frozen=True, dilated=True, padded_pool=padded_pool)
        del self.fc, self.avgpool
        blocks: Any = self.layer4
        for block in blocks:
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        self.freeze_below()

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return self.maps(x)

    def deformable_names(self, layers: int) -> list[str]:
        """The 3x3 convolutions that the paper deforms: the last ones of conv5; for 6 also three of conv4."""
        if layers not in (0, 1, 2, 3, 6):
            raise ValueError(f"deform_layers must be 0, 1, 2, 3 or 6, got {layers}")
        last = len(self.layer3)
        names = [f"layer3.{i}.conv2" for i in range(last - 3, last)] + [f"layer4.{i}.conv2" for i in range(3)]
        return names[len(names) - layers :]
