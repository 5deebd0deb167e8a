"""Layers that predict where they sample, and the plain poolings beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pliant import ops
from pliant.nn.aggregation import DCNv3, DCNv4
from pliant.nn.attention import MultiScaleDeformableAttention
from pliant.ops import _checks
from pliant.ops.roi_pool import SAMPLINGS

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DeformConv2dSame",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "MultiScaleDeformableAttention",
    "PSRoIPool",
    "RoIPool",
]


class DeformConv2d(nn.Conv2d):
    """A deformable convolution that predicts its own offsets (Dai et al. 2017, section 2.1).

    The layer is a `torch.nn.Conv2d` and loads the weights of one. Its offset branch `offset_conv`, a convolution with
    the same kernel, stride and dilation, predicts from the same input where each tap samples. The branch is initialised
    to zero, so the layer initially computes the plain convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: see `torch.nn.Conv2d`.
        padding: an int, a pair, `"same"` (for odd kernel extents) or `"valid"`. Padding is with zeros.
        offset_groups: number of groups of input channels with offsets of their own.
        modulated: also predict a factor for every sample (Zhu et al. 2019), here `2 * sigmoid(logit)`, initially one.
        border: `"paper"` or `"authors"`, see `pliant.ops.deform_conv2d`.
        offset_dilation: dilation of the offset branch, by default `dilation`. The authors' DeepLab uses 1 where
            `dilation` is 2.

    Shape:
        - Input: `[B, in_channels, H, W]`, or `[in_channels, H, W]`
        - Output: `[B, out_channels, Ho, Wo]`, or `[out_channels, Ho, Wo]`, as for `torch.nn.Conv2d`

    Attributes:
        offset_conv: `torch.nn.Conv2d` with `2 * offset_groups * kh * kw` output channels, and `offset_groups * kh * kw`
            more for the logits if `modulated`.

    Raises:
        ValueError, TypeError: if an argument is out of its range, or an input has the wrong shape, dtype or device.

    Examples:
        >>> layer = pliant.nn.DeformConv2d(16, 32, 3, padding=1, modulated=True)
        >>> layer(torch.rand(2, 16, 20, 30)).shape
        torch.Size([2, 32, 20, 30])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
        modulated: bool = False,
        border: str = "paper",
        offset_dilation: int | tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _checks.count("in_channels", in_channels)
        _checks.count("out_channels", out_channels)
        _checks.pair("kernel_size", kernel_size, least=1)
        _checks.pair("stride", stride, least=1)
        if not isinstance(padding, str):
            _checks.pair("padding", padding, least=0)
        _checks.pair("dilation", dilation, least=1)
        if offset_groups < 1 or in_channels % offset_groups:
            raise _checks.ArgumentError(f"offset_groups must divide in_channels {in_channels}, got {offset_groups}")
        _checks.choice("border", border, ops.BORDERS)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, "zeros", **factory
        )
        self.padding = _explicit_padding(self)
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.border = border
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.offset_conv = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * offset_groups * taps,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            *_narrowed(self, offset_dilation),
            **factory,
        )
        nn.init.zeros_(self.offset_conv.weight)
        nn.init.zeros_(self.offset_conv.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            _checks.layer_input("input", input, self.in_channels, self.weight, 3, 4)
        offset, mask = self.split(self.offset_conv(input))
        return ops.deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            mask,
            border=self.border,
        )

    def split(self, branch: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the output of `offset_conv` into offset `[B, 2 * G * kh * kw, Ho, Wo]` and mask or None."""
        if not self.modulated:
            return branch, None
        samples = self.offset_groups * self.kernel_size[0] * self.kernel_size[1]
        offset, logits = branch.split([2 * samples, samples], dim=-3)
        return offset, 2 * logits.sigmoid()

    def extra_repr(self) -> str:
        extra = f", offset_groups={self.offset_groups}" if self.offset_groups != 1 else ""
        return f"{super().extra_repr()}{extra}{', modulated=True' if self.modulated else ''}"


class DeformConv2dSame(DeformConv2d):
    """A deformable convolution with TensorFlow's "SAME" padding, like timm's `Conv2dSame`.

    The input is padded so that the output has `ceil(H / stride)` rows and `ceil(W / stride)` columns. If the padding is
    odd, the bottom or right side gets the extra cell, so the alignment of cells depends on the size of the input.

    Args:
        in_channels, out_channels, kernel_size, stride: see `torch.nn.Conv2d`.
        padding: ignored; timm's layer has the argument too.
        args, kwargs: the other arguments of `DeformConv2d`.

    Shape:
        - Input: `[B, in_channels, H, W]`
        - Output: `[B, out_channels, ceil(H / stride), ceil(W / stride)]`

    Examples:
        >>> pliant.nn.DeformConv2dSame(3, 8, 3, stride=2)(torch.rand(1, 3, 15, 16)).shape
        torch.Size([1, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, *args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_padded_same(input, self.kernel_size, self.stride, self.dilation))


@torch.fx.wrap
def _padded_same(input: Tensor, kernel: Any, stride: Any, dilation: Any) -> Tensor:
    """Pad a map as TensorFlow does for a convolution. A symbolic trace records the call without looking inside."""
    sides = []
    for axis in (1, 0):
        size, extent = input.shape[2 + axis], dilation[axis] * (kernel[axis] - 1) + 1
        total = max((-(-size // stride[axis]) - 1) * stride[axis] + extent - size, 0)
        sides += [total // 2, total - total // 2]
    return nn.functional.pad(input, sides)


def _narrowed(conv: nn.Conv2d, dilation: int | tuple[int, int] | None) -> tuple[Any, Any]:
    """Padding and dilation of a branch whose output has the size of the convolution's output."""
    if dilation is None:
        dilation = conv.dilation  # type: ignore[assignment]
    pair = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)  # type: ignore[arg-type]
    spare = [(own - new) * (kernel - 1) for own, new, kernel in zip(conv.dilation, pair, conv.kernel_size, strict=True)]
    padding = tuple(pad - extra // 2 for pad, extra in zip(conv.padding, spare, strict=True))  # type: ignore[operator]
    if min(pair) < 1 or any(extra % 2 for extra in spare) or min(padding) < 0:
        raise ValueError(
            f"offset_dilation must give the convolution's output size (kernel_size {conv.kernel_size}, padding "
            f"{conv.padding}, dilation {conv.dilation}), got {dilation}"
        )
    return padding, pair


def _explicit_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The padding as numbers, also if it was given as "same" or "valid"."""
    if not isinstance(conv.padding, str):
        return conv.padding  # type: ignore[return-value]
    if conv.padding == "valid":
        return (0, 0)
    extents = [dilate * (kernel - 1) for dilate, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(extent % 2 for extent in extents):
        raise ValueError(
            f"padding='same' needs an even dilation * (kernel_size - 1), got kernel_size {conv.kernel_size} "
            f"and dilation {conv.dilation}"
        )
    return (extents[0] // 2, extents[1] // 2)


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
