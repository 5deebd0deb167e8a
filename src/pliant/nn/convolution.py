"""Deformable convolution as a layer that predicts its own offsets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pliant import ops
from pliant.ops import _checks


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
