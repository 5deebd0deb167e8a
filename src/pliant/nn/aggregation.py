"""The layers of deformable aggregation: DCNv3 and DCNv4."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pliant import ops
from pliant.ops import _checks

_ACTIVATIONS = {"ReLU": nn.ReLU, "SiLU": nn.SiLU, "GELU": nn.GELU}


class _Aggregation(nn.Module):
    """What both layers are told and check."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int,
        pad: int,
        dilation: int,
        group: int,
        offset_scale: float,
        center_feature_scale: bool,
        remove_center: bool,
    ) -> None:
        for name, value in (
            ("channels", channels),
            ("kernel_size", kernel_size),
            ("stride", stride),
            ("dilation", dilation),
            ("group", group),
        ):
            _checks.count(name, value)
        _checks.scale("offset_scale", offset_scale)
        if channels % group:
            raise _checks.ArgumentError(f"group must divide channels {channels}, got {group}")
        if stride != 1 or 2 * pad != dilation * (kernel_size - 1):
            raise _checks.ArgumentError(
                "the output must have the size of the input, as the offsets have: stride must be 1 and pad "
                f"dilation * (kernel_size - 1) / 2, got stride {stride}, pad {pad}, dilation {dilation} and "
                f"kernel_size {kernel_size}"
            )
        if remove_center and kernel_size % 2 == 0:
            raise _checks.ArgumentError(f"with remove_center, kernel_size must be odd, got {kernel_size}")
        super().__init__()
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = bool(remove_center)
        self.points = kernel_size**2 - self.remove_center

    def _add_center_feature_scale(self) -> None:
        if self.center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(self.group, self.channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(self.group))

    def _aggregate(self, values: Tensor, offset: Tensor, mask: Tensor, softmax: bool) -> Tensor:
        """Aggregate values `[N, H, W, C]`; offset `[N, H, W, G, 2 * P]` and mask `[N, H, W, G, P]`."""
        return ops.deform_aggregate(
            values,
            offset.unflatten(-1, (self.points, 2)),
            mask,
            self.kernel_size,
            self.stride,
            self.pad,
            self.dilation,
            self.offset_scale,
            self.remove_center,
            softmax,
        )

    def _with_center(self, aggregated: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """Mix each group with its value at the centre, by a share that `query` predicts."""
        if not self.center_feature_scale:
            return aggregated
        logits = nn.functional.linear(query, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias)
        share = logits.sigmoid().repeat_interleave(self.channels // self.group, -1)
        return aggregated * (1 - share) + values * share

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, pad={self.pad}, dilation={self.dilation}, "
            f"group={self.group}, offset_scale={self.offset_scale}, remove_center={self.remove_center}"
        )


class DCNv3(_Aggregation):
    """Deformable convolution v3 (Wang et al., InternImage, 2023, section 3.1).

    A depthwise convolution of the input predicts, cell by cell, where the points of each group read and how they are
    weighted; the weights of a group's points sum to one. The values that they read are a linear projection of the
    input, and the output is one of their sums. Arguments, parameters and their initial values are those of the released
    modules `DCNv3` and `DCNv3_pytorch`, so the layer takes their place and loads their state dicts.

    Args:
        channels: channels of input and output.
        kernel_size: side of the kernel.
        dw_kernel_size: side of the depthwise convolution's kernel, by default `kernel_size`.
        stride: must be 1.
        pad: padding. The output must have the size of the input.
        dilation: distance of the kernel's points.
        group: number of groups of channels with offsets of their own. It must divide `channels`.
        offset_scale: factor of the offsets and of the kernel's extent.
        act_layer: activation behind the depthwise convolution, `"GELU"`, `"ReLU"` or `"SiLU"`.
        norm_layer: its normalisation, `"LN"` or `"BN"`.
        center_feature_scale: mix each group's sum with its value at the centre (InternImage-H and G).
        remove_center: leave out the point in the middle of the kernel.

    Shape:
        - Input: `[N, H, W, channels]`, **channels last**
        - Output: `[N, H, W, channels]`

    Attributes:
        dw_conv: depthwise convolution, normalisation and activation.
        offset: `torch.nn.Linear` to `group * P * 2` offsets, x before y, initially zero.
        mask: `torch.nn.Linear` to `group * P` logits, initially zero.
        input_proj, output_proj: `torch.nn.Linear`.

    Examples:
        >>> layer = pliant.nn.DCNv3(64, group=4)
        >>> layer(torch.rand(2, 20, 30, 64)).shape
        torch.Size([2, 20, 30, 64])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__(
            channels, kernel_size, stride, pad, dilation, group, offset_scale, center_feature_scale, remove_center
        )
        _checks.choice("act_layer", act_layer, tuple(_ACTIVATIONS))
        _checks.choice("norm_layer", norm_layer, ("LN", "BN"))
        side = _odd("dw_kernel_size", kernel_size if dw_kernel_size is None else dw_kernel_size)
        self.dw_conv = nn.Sequential(
            nn.Conv2d(channels, channels, side, padding=(side - 1) // 2, groups=channels),
            nn.Sequential(nn.BatchNorm2d(channels), _ChannelsLast())
            if norm_layer == "BN"
            else nn.Sequential(_ChannelsLast(), nn.LayerNorm(channels, eps=1e-6)),
            _ACTIVATIONS[act_layer](),
        )
        self.offset = nn.Linear(channels, 2 * group * self.points)
        self.mask = nn.Linear(channels, group * self.points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._add_center_feature_scale()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the linear layers as the released module does."""
        _zero(self.offset, self.mask)
        _spread_evenly(self.input_proj, self.output_proj)

    def forward(self, input: Tensor) -> Tensor:
        _check_channels(input, self.channels, 4)
        values = self.input_proj(input)
        query = self.dw_conv(input.permute(0, 3, 1, 2))
        offset = self.offset(query).unflatten(-1, (self.group, -1))
        mask = self.mask(query).unflatten(-1, (self.group, -1))
        out = self._aggregate(values, offset, mask.softmax(-1).to(values.dtype), softmax=False)
        return self.output_proj(self._with_center(out, values, query))  # type: ignore[no-any-return]


class DCNv4(_Aggregation):
    """Deformable convolution v4 (Xiong et al., Efficient Deformable ConvNets, 2024).

    Unlike in `DCNv3`, weights are not normalised, and one linear layer predicts offsets and weights from the input
    itself. Arguments, parameters and their initial values are those of the released module, so the layer takes its
    place and loads its state dict. Groups may have any number of channels.

    Args:
        channels: channels of input and output.
        kernel_size: side of the kernel.
        stride: must be 1.
        pad: padding. The output must have the size of the input.
        dilation: distance of the kernel's points.
        group: number of groups of channels with offsets of their own. It must divide `channels`.
        offset_scale: factor of the offsets and of the kernel's extent.
        dw_kernel_size: side of a depthwise convolution before the offsets and weights, or None for none.
        center_feature_scale: mix each group's sum with its value at the centre.
        remove_center: leave out the point in the middle of the kernel.
        output_bias: whether `output_proj` has a bias.
        without_pointwise: leave out `value_proj` and `output_proj`.
        kwargs: ignored, as by the released module.

    Shape:
        - Input: `[N, L, channels]`, the cells of a map row by row, and the map's (height, width), by default a square
        - Output: `[N, L, channels]`

    Attributes:
        offset_mask: `torch.nn.Linear`, initially zero. For each group there are `2 * P` offsets, x before y, then P
            weights; the number of features is rounded up to a multiple of eight.
        offset_mask_dw: `torch.nn.Conv2d`, with `dw_kernel_size`.
        value_proj, output_proj: `torch.nn.Linear`, unless `without_pointwise`.

    Examples:
        >>> layer = pliant.nn.DCNv4(64, group=4)
        >>> layer(torch.rand(2, 20 * 30, 64), (20, 30)).shape
        torch.Size([2, 600, 64])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(
            channels, kernel_size, stride, pad, dilation, group, offset_scale, center_feature_scale, remove_center
        )
        self.dw_kernel_size = dw_kernel_size
        self.without_pointwise = without_pointwise
        if dw_kernel_size is not None:
            side = _odd("dw_kernel_size", dw_kernel_size)
            self.offset_mask_dw = nn.Conv2d(channels, channels, side, padding=(side - 1) // 2, groups=channels)
        self.offset_mask = nn.Linear(channels, -(-3 * group * self.points // 8) * 8)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, channels, bias=output_bias)
        self._add_center_feature_scale()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the linear layers as the released module does."""
        _zero(self.offset_mask)
        if not self.without_pointwise:
            _spread_evenly(self.value_proj, self.output_proj)

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Aggregate the cells of a map.

        Args:
            input: cells `[N, L, channels]`, row by row.
            shape: height and width of the map, by default a square of L cells.
        """
        _check_channels(input, self.channels, 3)
        cells = input.unflatten(1, _map_of(input, shape))
        values = cells if self.without_pointwise else self.value_proj(cells)
        query = cells
        if self.dw_kernel_size is not None:
            query = self.offset_mask_dw(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        packed = self.offset_mask(query)[..., : 3 * self.group * self.points].unflatten(-1, (self.group, -1))
        offset, mask = packed.split([2 * self.points, self.points], dim=-1)
        out = self._aggregate(values, offset, mask, softmax=False)
        out = self._with_center(out, values, out).flatten(1, 2)
        return out if self.without_pointwise else self.output_proj(out)


class _ChannelsLast(nn.Module):
    """`[N, C, H, W]` to `[N, H, W, C]`."""

    def forward(self, input: Tensor) -> Tensor:
        return input.permute(0, 2, 3, 1)


def _odd(name: str, side: int) -> int:
    _checks.count(name, side)
    if side % 2 == 0:
        raise _checks.ArgumentError(f"{name} must be odd, so that the output has the size of the input, got {side}")
    return side


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _spread_evenly(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_channels(input: Tensor, channels: int, dimensions: int) -> None:
    _checks.tensor("input", input, dimensions)
    if input.shape[-1] != channels:
        raise _checks.ShapeError(f"input must have {channels} channels, the last axis, got shape {list(input.shape)}")


def _map_of(input: Tensor, shape: tuple[int, int] | None) -> tuple[int, int]:
    cells = input.shape[1]
    height, width = (math.isqrt(cells), math.isqrt(cells)) if shape is None else shape
    if height * width != cells:
        expected = "must be given unless the map is a square" if shape is None else "must have the cells of the input"
        raise _checks.ShapeError(f"shape {expected}: input has {cells} cells, and shape is {shape}")
    return height, width
