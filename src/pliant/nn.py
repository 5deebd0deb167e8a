"""Layers that predict their own offsets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pliant import ops
from pliant.ops import _checks
from pliant.ops.roi_pool import SAMPLINGS


class DeformConv2d(nn.Conv2d):
    """A deformable convolution with its offset branch (Dai et al. 2017, section 2.1).

    A convolution, and so loads its weights; beside it `offset_conv`, of the same kernel, stride and dilation,
    predicts from the same input where each tap samples. The branch starts at zero, so at first the
    layer computes what the plain convolution does.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as torch.nn.Conv2d;
            `padding` may be "same" (with an odd kernel extent) or "valid". Padding is with zeros.
        offset_groups: groups of input channels that sample at places of their own.
        modulated: also predict a factor for every sample, `2 * sigmoid(logit)`, one at the start (Zhu et al.
            2019; twice theirs, so that the layer starts as the plain convolution).
        border: `"paper"` or `"authors"`, see `pliant.ops.deform_conv2d`.
        offset_dilation: of the offset branch, if not `dilation` (the authors' DeepLab has 1 where that is 2).

    Shape: `[B, in_channels, H, W]` to `[B, out_channels, Ho, Wo]`, Ho and Wo as a convolution's; or both without their
    batch axis, as torch.nn.Conv2d takes them.

    Attributes:
        offset_conv: torch.nn.Conv2d with `2 * offset_groups * kh * kw` output channels, and
            `offset_groups * kh * kw` more for the logits when modulated.
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
        """The output of `offset_conv` as the offset `[B, 2 * G * kh * kw, Ho, Wo]` and the mask, if modulated."""
        if not self.modulated:
            return branch, None
        samples = self.offset_groups * self.kernel_size[0] * self.kernel_size[1]
        offset, logits = branch.split([2 * samples, samples], dim=-3)
        return offset, 2 * logits.sigmoid()

    def extra_repr(self) -> str:
        extra = f", offset_groups={self.offset_groups}" if self.offset_groups != 1 else ""
        return f"{super().extra_repr()}{extra}{', modulated=True' if self.modulated else ''}"


class DeformConv2dSame(DeformConv2d):
    """A deformable convolution with TensorFlow's padding "SAME", as timm's Conv2dSame.

    The input is padded so that the output has `ceil(H / stride)` rows and `ceil(W / stride)` columns. Where the padding
    is odd, the side at the bottom or at the right has one cell more, so how a cell lies on the input depends on the
    input's size.

    Args:
        in_channels, out_channels, kernel_size, stride: as torch.nn.Conv2d.
        padding: not used; timm's layer has the argument too.
        args, kwargs: the other arguments of `DeformConv2d`.

    Shape: `[B, in_channels, H, W]` to `[B, out_channels, ceil(H / stride), ceil(W / stride)]`.
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
    """A map with TensorFlow's padding for a convolution; what the sizes say does not concern a symbolic trace."""
    sides = []
    for axis in (1, 0):
        size, extent = input.shape[2 + axis], dilation[axis] * (kernel[axis] - 1) + 1
        total = max((-(-size // stride[axis]) - 1) * stride[axis] + extent - size, 0)
        sides += [total // 2, total - total // 2]
    return nn.functional.pad(input, sides)


def _narrowed(conv: nn.Conv2d, dilation: int | tuple[int, int] | None) -> tuple[Any, Any]:
    """Padding and dilation of a branch whose output has the size of the convolution's."""
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
    """The padding in numbers, where it came as "same" or "valid"."""
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
    """Plain RoI pooling by averages, `pliant.ops.roi_pool` as a module.

    Shape: input `[B, C, H, W]` and rois `[R, 5]` or a list of `[L, 4]`, to `[R, C, k, k]`.
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
    """Deformable RoI pooling with its offset branch (Dai et al. 2017, section 2.2, figure 3).

    The RoI is pooled plainly, a fully connected layer predicts from that the normalised offsets of its k x k
    bins, and the RoI is pooled again with the bins moved. The layer starts at zero, as plain pooling; train it
    at 0.01 times the learning rate (`pliant.param_groups` does).

    Args:
        channels: C of the input.
        output_size: k.
        spatial_scale: cells of the map per image pixel.
        gamma: scale of the offsets, in parts of the RoI's size.
        sampling: `"paper"` or `"authors"`, see `pliant.ops.roi_pool`.

    Shape: input `[B, C, H, W]` and rois `[R, 5]` or a list of `[L, 4]`, to `[R, C, k, k]`.

    Attributes:
        offset_fc: torch.nn.Linear from `C * k * k` to `2 * k * k` (x offsets of all bins, then y).
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
    """Plain position-sensitive RoI pooling by averages, `pliant.ops.ps_roi_pool` as a module.

    Shape: input `[B, C * k * k, H, W]` and rois `[R, 5]` or a list of `[L, 4]`, to `[R, C, k, k]`.
    """

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        return ops.ps_roi_pool(input, rois, self.output_size, self.spatial_scale, sampling=self.sampling)


class DeformPSRoIPool(nn.Module):
    """Deformable position-sensitive RoI pooling with its offset fields (Dai et al. 2017, figure 4).

    A 1x1 convolution of the features gives `2 * k^2 * T` offset fields; position-sensitive pooling of these
    gives every RoI the offsets of its bins, with which the score maps are then pooled.

    Args:
        channels: of the features that predict the offsets.
        output_size: k.
        spatial_scale: cells of the map per image pixel.
        offset_classes: T. The number of classes, background included, for class-aware offsets; 1 for
            class-agnostic ones. T must divide the pooled channels.
        gamma, sampling: as `DeformRoIPool`. With `"authors"` the fields too are pooled by their sampled operator.

    Shape: scores `[B, C * k * k, H, W]`, features `[B, channels, H, W]` and rois, to `[R, C, k, k]`.

    Attributes:
        offset_conv: torch.nn.Conv2d, 1x1, zero at first; channel `(2 * t + axis) * k * k + bin`, x before y.
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
