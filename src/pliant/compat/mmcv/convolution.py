"""mmcv's deformable convolutions: `mmcv.ops.deform_conv2d`, `modulated_deform_conv2d` and their layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from pliant import ops
from pliant.ops import _checks

Pair = int | tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Deformable convolution with the arguments of `mmcv.ops.deform_conv2d`.

    Args:
        input, offset, weight, stride, padding, dilation: see `pliant.ops.deform_conv2d`. Input and weight are converted
            to the dtype of the offset, as by mmcv.
        groups: number of groups of the weight.
        deform_groups: number of groups of channels with offsets of their own.
        bias: must be False.
        im2col_step: ignored: memory does not depend on the batch, and any batch size is accepted.

    Returns:
        The output map `[B, O, Ho, Wo]`.

    Examples:
        >>> input, offset, weight = torch.rand(1, 8, 10, 12), torch.zeros(1, 18, 10, 12), torch.rand(4, 8, 3, 3)
        >>> pliant.compat.mmcv.deform_conv2d(input, offset, weight, 1, 1).shape
        torch.Size([1, 4, 10, 12])
    """
    if bias:
        raise _checks.ArgumentError("bias must be False: mmcv's deform_conv2d has none")
    return _convolve(input, offset, None, weight, None, stride, padding, dilation, groups, deform_groups)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Modulated deformable convolution with the arguments of `mmcv.ops.modulated_deform_conv2d`.

    Args:
        input, mask, weight, bias, stride, padding, dilation: see `pliant.ops.deform_conv2d`. Input, weight and bias are
            converted to the dtype of the offset, as by mmcv.
        offset: offsets, see `pliant.ops.deform_conv2d`. They and the mask may be larger than the output, as in DyHead.
            mmcv then reads an image's numbers from the first one on, as if they had the size of the output.
        groups: number of groups of the weight.
        deform_groups: number of groups of channels with offsets of their own.

    Returns:
        The output map `[B, O, Ho, Wo]`.

    Examples:
        >>> input, offset, weight = torch.rand(1, 8, 10, 12), torch.zeros(1, 18, 10, 12), torch.rand(4, 8, 3, 3)
        >>> pliant.compat.mmcv.modulated_deform_conv2d(input, offset, offset[:, 9:], weight, None, 1, 1).shape
        torch.Size([1, 4, 10, 12])
    """
    if input.dim() == weight.dim() == offset.dim() == 4:
        axes = zip(input.shape[2:], weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation), strict=True)
        output = [(side + 2 * pad - step * (taps - 1) - 1) // pace + 1 for side, taps, pace, pad, step in axes]
        offset = _first_numbers(offset, output)
        mask = None if mask is None else _first_numbers(mask, output)
    return _convolve(input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)


def _convolve(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    deform_groups: int,
) -> Tensor:
    input, weight = input.type_as(offset), weight.type_as(offset)
    if input.dim() == 4 and weight.dim() == 4:
        channels = 2 * deform_groups * weight.shape[2] * weight.shape[3]
        if input.shape[1] != groups * weight.shape[1] or offset.shape[1] != channels:
            raise _checks.ShapeError(
                f"groups {groups} and deform_groups {deform_groups} do not go with input {list(input.shape)}, weight "
                f"{list(weight.shape)} and offset {list(offset.shape)}"
            )
    bias = None if bias is None else bias.type_as(offset)
    return ops.deform_conv2d(input, offset, weight, bias, _pair(stride), _pair(padding), _pair(dilation), mask)


def _first_numbers(maps: Tensor, size: list[int]) -> Tensor:
    """The first numbers of each image as maps of this size; maps that have it, or fewer numbers, as they are."""
    needed = maps.shape[1] * size[0] * size[1]
    if list(maps.shape[2:]) == size or min(size) < 1 or needed > maps.shape[1:].numel():
        return maps
    return maps.flatten(1)[:, :needed].unflatten(1, (maps.shape[1], *size))


class _Convolution(nn.Module):
    """The attributes of mmcv's layers, which are those of `torch.nn.Conv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        deform_groups: int,
    ) -> None:
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise _checks.ArgumentError(f"groups must divide {name} {value}, got {groups}")
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deform_groups = deform_groups
        self.transposed = False
        self.output_padding = (0,)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))

    @property
    def _geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int, int]:
        return self.stride, self.padding, self.dilation, self.groups, self.deform_groups

    def _offset_branch(self, numbers: int) -> nn.Conv2d:
        """A convolution to `numbers` channels per sample, initially zero."""
        samples = self.deform_groups * self.kernel_size[0] * self.kernel_size[1]
        conv = nn.Conv2d(
            self.in_channels, numbers * samples, self.kernel_size, self.stride, self.padding, self.dilation
        )
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return conv

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deform_groups={self.deform_groups}"
        )


class DeformConv2d(_Convolution):
    """`mmcv.ops.DeformConv2d`: a deformable convolution whose offsets are passed to it.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: see `torch.nn.Conv2d`.
        deform_groups: number of groups of channels with offsets of their own.
        bias: must be False.
        im2col_step: ignored.
        deformable_groups: the former name of `deform_groups`.

    Examples:
        >>> layer = pliant.compat.mmcv.DeformConv2d(8, 4, 3, padding=1)
        >>> layer(torch.rand(1, 8, 10, 12), torch.zeros(1, 18, 10, 12)).shape
        torch.Size([1, 4, 10, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int = 32,
        *,
        deformable_groups: int | None = None,
    ) -> None:
        if bias:
            raise _checks.ArgumentError("bias must be False: mmcv's DeformConv2d has none")
        offsets = deform_groups if deformable_groups is None else deformable_groups
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, offsets)
        self.im2col_step = im2col_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weight as mmcv does."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        # A map that is smaller than the kernel is padded below and to the right, and its output is cut again.
        spare = [max(kernel - side, 0) for kernel, side in zip(self.kernel_size, x.shape[2:], strict=True)]
        if any(spare):
            x, offset = (nn.functional.pad(each, (0, spare[1], 0, spare[0])) for each in (x, offset))
        out = self._convolve(x, offset)
        return out[:, :, : out.shape[2] - spare[0], : out.shape[3] - spare[1]].contiguous() if any(spare) else out

    def _convolve(self, x: Tensor, offset: Tensor) -> Tensor:
        return deform_conv2d(x, offset, self.weight, *self._geometry)


class DeformConv2dPack(DeformConv2d):
    """`mmcv.ops.DeformConv2dPack`, `DCN` in its registry: a deformable convolution that predicts its own offsets.

    Args:
        args, kwargs: see `DeformConv2d`.

    Attributes:
        conv_offset: `torch.nn.Conv2d` that predicts the offsets, initially zero.

    Examples:
        >>> pliant.compat.mmcv.DeformConv2dPack(8, 4, 3, padding=1)(torch.rand(1, 8, 10, 12)).shape
        torch.Size([1, 4, 10, 12])
    """

    _version = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self._offset_branch(2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self._convolve(x, self.conv_offset(x))


class ModulatedDeformConv2d(_Convolution):
    """`mmcv.ops.ModulatedDeformConv2d`: a modulated deformable convolution; offsets and mask are passed to it.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: see `torch.nn.Conv2d`.
        deform_groups: number of groups of channels with offsets of their own.
        bias: whether the layer has a bias, initially zero.
        deformable_groups: the former name of `deform_groups`.

    Examples:
        >>> layer = pliant.compat.mmcv.ModulatedDeformConv2d(8, 4, 3, padding=1)
        >>> layer(torch.rand(1, 8, 10, 12), torch.zeros(1, 18, 10, 12), torch.ones(1, 9, 10, 12)).shape
        torch.Size([1, 4, 10, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
        *,
        deformable_groups: int | None = None,
    ) -> None:
        offsets = deform_groups if deformable_groups is None else deformable_groups
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, offsets)
        self.bias: Tensor | None
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise weight and bias as mmcv does."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, offset, mask, self.weight, self.bias, *self._geometry)


class ModulatedDeformConv2dPack(ModulatedDeformConv2d):
    """`mmcv.ops.ModulatedDeformConv2dPack`, `DCNv2` in its registry: it predicts its own offsets and mask.

    The mask is a sigmoid, initially a half.

    Args:
        args, kwargs: see `ModulatedDeformConv2d`.

    Attributes:
        conv_offset: `torch.nn.Conv2d` that predicts offsets and logits of the mask, initially zero.

    Examples:
        >>> pliant.compat.mmcv.ModulatedDeformConv2dPack(8, 4, 3, padding=1)(torch.rand(1, 8, 10, 12)).shape
        torch.Size([1, 4, 10, 12])
    """

    _version = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = self._offset_branch(3)

    def init_weights(self) -> None:
        """Initialise all parameters as mmcv does."""
        super().init_weights()
        if hasattr(self, "conv_offset"):
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        branch = self.conv_offset(x)
        samples = branch.shape[1] // 3
        offset, logits = branch.split([2 * samples, samples], dim=1)
        return super().forward(x, offset, logits.sigmoid())


def with_offset_branches(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Rename the offset branches of files that mmcv wrote before its layers were at version 2.

    There the branch of a layer `conv2` was beside it, as `conv2_offset.weight`, and now it is in it, as
    `conv2.conv_offset.weight`. mmcv's layers rename it while they are loaded, but since version 2.0 torch shows a layer
    only the names that begin with its own.

    Args:
        state_dict: names and tensors.
        model: the model that will load them. Its layers may be mmcv's or Pliant's.

    Returns:
        The same tensors under the names of today.

    Examples:
        >>> model = torch.nn.ModuleDict({"conv2": pliant.compat.mmcv.DeformConv2dPack(4, 4, 3)})
        >>> names = ("conv2.weight", "conv2_offset.weight", "conv2_offset.bias")
        >>> early = dict(zip(names, model.state_dict().values()))
        >>> model.load_state_dict(pliant.compat.mmcv.with_offset_branches(early, model))
        <All keys matched successfully>
    """
    renamed = dict(state_dict)
    for name, layer in model.named_modules():
        for kind in ("weight", "bias") if isinstance(getattr(layer, "conv_offset", None), nn.Module) else ():
            former, now = f"{name}_offset.{kind}", f"{name}.conv_offset.{kind}"
            if former in renamed and now not in renamed:
                renamed[now] = renamed.pop(former)
    return renamed
