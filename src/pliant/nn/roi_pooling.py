"""RoI pooling as layers: deformable ones that predict the offsets of their bins, and the plain ones beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant import ops
from pliant.ops import _checks
from pliant.ops.roi_pool import SAMPLINGS


def _check_pooling(output_size: int, spatial_scale: float, sampling: str) -> None:
    _checks.count("output_size", output_size)
    _checks.scale("spatial_scale", spatial_scale)
    _checks.choice("sampling", sampling, SAMPLINGS)


class RoIPool(nn.Module):
    """Average RoI pooling, `pliant.ops.roi_pool` as a module.

    Args:
        output_size: number of bins k on each side.
        spatial_scale: cells of the map per image pixel.
        sampling: `"paper"` or `"authors"`, see `pliant.ops.roi_pool`.

    Shape:
        - Input: map `[B, C, H, W]`, and rois `[R, 5]` or a list of boxes `[L, 4]` per image
        - Output: `[R, C, k, k]`

    Examples:
        >>> pool = pliant.nn.RoIPool(output_size=7, spatial_scale=1 / 16)
        >>> rois = torch.tensor([[0, 10.0, 20.0, 200.0, 300.0]])  # image, x0, y0, x1, y1
        >>> pool(torch.rand(1, 64, 24, 32), rois).shape
        torch.Size([1, 64, 7, 7])
    """

    def __init__(self, output_size: int, spatial_scale: float, sampling: str = "paper") -> None:
        _check_pooling(output_size, spatial_scale, sampling)
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling = sampling

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return ops.roi_pool(input, rois, self.output_size, self.spatial_scale, sampling=self.sampling)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling={self.sampling!r}"


class DeformRoIPool(RoIPool):
    """Deformable RoI pooling that predicts its own offsets (Dai et al. 2017, section 2.2 and figure 3).

    The layer pools each RoI plainly, predicts the normalised offsets of its k x k bins from the result with a fully
    connected layer, initialised to zero, and pools the RoI again with the bins moved. The paper trains the fully
    connected layer at 0.01 times the learning rate, as `pliant.param_groups` does.

    Args:
        channels: channels C of the input.
        output_size: number of bins k on each side.
        spatial_scale: cells of the map per image pixel.
        gamma: scale of the offsets, in fractions of the RoI's size.
        sampling: `"paper"` or `"authors"`, see `pliant.ops.roi_pool`.

    Shape:
        - Input: map `[B, C, H, W]`, and rois `[R, 5]` or a list of boxes `[L, 4]` per image
        - Output: `[R, C, k, k]`

    Attributes:
        offset_fc: `torch.nn.Linear` from `C * k * k` to `2 * k * k` features, the x offsets of all bins before the
            y offsets.

    Raises:
        ValueError, TypeError: if an argument is out of its range, or an input has the wrong shape, dtype or device.

    Examples:
        >>> pool = pliant.nn.DeformRoIPool(channels=64, output_size=7, spatial_scale=1 / 16)
        >>> rois = torch.tensor([[0, 10.0, 20.0, 200.0, 300.0]])  # image, x0, y0, x1, y1
        >>> pool(torch.rand(1, 64, 24, 32), rois).shape
        torch.Size([1, 64, 7, 7])
    """

    def __init__(
        self, channels: int, output_size: int, spatial_scale: float, gamma: float = 0.1, sampling: str = "paper"
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling)
        _checks.count("channels", channels)
        self.channels = channels
        self.gamma = gamma
        self.offset_fc = nn.Linear(channels * output_size**2, 2 * output_size**2)
        nn.init.zeros_(self.offset_fc.weight)
        nn.init.zeros_(self.offset_fc.bias)

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        if not torch.jit.is_scripting():
            _checks.layer_input("input", input, self.channels, self.offset_fc.weight, 4)
        pooled = ops.roi_pool(input, rois, self.output_size, self.spatial_scale, sampling=self.sampling)
        offset = self.offset_fc(pooled.flatten(1)).view(-1, 2, self.output_size, self.output_size)
        return ops.deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.gamma, sampling=self.sampling
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma}"


class PSRoIPool(RoIPool):
    """Average position-sensitive RoI pooling, `pliant.ops.ps_roi_pool` as a module.

    Args:
        output_size, spatial_scale, sampling: see `RoIPool`.

    Shape:
        - Input: score maps `[B, C * k * k, H, W]`, and rois `[R, 5]` or a list of boxes `[L, 4]` per image
        - Output: `[R, C, k, k]`

    Examples:
        >>> pool = pliant.nn.PSRoIPool(output_size=3, spatial_scale=1 / 16)
        >>> pool(torch.rand(1, 5 * 3 * 3, 10, 10), [torch.tensor([[16.0, 16.0, 112.0, 80.0]])]).shape
        torch.Size([1, 5, 3, 3])
    """

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return ops.ps_roi_pool(input, rois, self.output_size, self.spatial_scale, sampling=self.sampling)


class DeformPSRoIPool(nn.Module):
    """Deformable position-sensitive RoI pooling that predicts its own offsets (Dai et al. 2017, figure 4).

    A 1x1 convolution of the features gives `2 * k * k * T` offset fields. Position-sensitive pooling of these fields
    gives the offsets of every bin of every RoI, and the score maps are pooled with the bins moved.

    Args:
        channels: channels of the features that predict the offsets.
        output_size: number of bins k on each side.
        spatial_scale: cells of the map per image pixel.
        offset_classes: number of classes T with offsets of their own: the number of classes, background included, for
            class-aware offsets, or 1 for class-agnostic ones. T must divide the pooled channels.
        gamma: scale of the offsets, in fractions of the RoI's size.
        sampling: `"paper"` or `"authors"`, see `pliant.ops.roi_pool`; `"authors"` pools the offset fields by the
            authors' sampled operator too.

    Shape:
        - Input: score maps `[B, C * k * k, H, W]`, features `[B, channels, H, W]`, and rois as for `RoIPool`
        - Output: `[R, C, k, k]`

    Attributes:
        offset_conv: 1x1 `torch.nn.Conv2d`, initialised to zero. The offset of a bin on an axis (x before y) is channel
            `(2 * t + axis) * k * k + bin`.

    Raises:
        ValueError, TypeError: if an argument is out of its range, or an input has the wrong shape, dtype or device.

    Examples:
        >>> pool = pliant.nn.DeformPSRoIPool(channels=64, output_size=3, spatial_scale=1 / 16, offset_classes=5)
        >>> scores, features = torch.rand(1, 5 * 3 * 3, 10, 10), torch.rand(1, 64, 10, 10)
        >>> pool(scores, features, [torch.tensor([[16.0, 16.0, 112.0, 80.0]])]).shape
        torch.Size([1, 5, 3, 3])
    """

    def __init__(
        self,
        channels: int,
        output_size: int,
        spatial_scale: float,
        offset_classes: int = 1,
        gamma: float = 0.1,
        sampling: str = "paper",
    ) -> None:
        _check_pooling(output_size, spatial_scale, sampling)
        _checks.count("channels", channels)
        _checks.count("offset_classes", offset_classes)
        super().__init__()
        self.channels = channels
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.gamma = gamma
        self.sampling = sampling
        self.offset_conv = nn.Conv2d(channels, 2 * offset_classes * output_size**2, 1)
        nn.init.zeros_(self.offset_conv.weight)
        nn.init.zeros_(self.offset_conv.bias)  # type: ignore[arg-type]

    def forward(self, scores: Tensor, features: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        if not torch.jit.is_scripting():
            _checks.layer_input("features", features, self.channels, self.offset_conv.weight, 4)
        fields = self.offset_conv(features)
        offset = ops.deform_ps_roi_pool(
            fields, rois, None, self.output_size, self.spatial_scale, sampling=self.sampling
        )
        return ops.deform_ps_roi_pool(
            scores, rois, offset, self.output_size, self.spatial_scale, self.gamma, sampling=self.sampling
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, gamma={self.gamma}, "
            f"sampling={self.sampling!r}"
        )
