"""The problems that are timed, and their tensors.

Offsets are odd multiples of 1/512, or of 1/8 where half precision must hold them. RoIs lie on whole pixels with
sides of 28, 56, ... pixels. So every sampled position is exact in float32 and never a whole cell, where the operators
have a kink: implementations that differ only in rounding then agree, in their gradients too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""float32: what goes in, by the names of the operator's arguments, and `grad`, the gradient of the output."""

STRIDE = 16  # image pixels a cell of the map that RoIs pool from
GAMMA = 0.125


CONVOLUTION_HEAD = "N, C→O, map, kernel, dilation, offset groups"
POOLING_HEAD = "operator, RoIs, channels, bins, map, sampling"


@dataclass(frozen=True)
class ConvRow:
    """A deformable convolution of stride 1 whose padding is its dilation, so that the map keeps its size."""

    batch: int
    channels: int
    out_channels: int
    height: int
    width: int
    dilation: int = 1
    offset_groups: int = 1
    kernel: int = 3
    groups: int = 1
    spread: float = 2.0  # standard deviation of the offsets, in cells
    places = 256  # of offsets within a cell

    @property
    def name(self) -> str:
        """The numbers in the order of `CONVOLUTION_HEAD`, and how many groups if there are several."""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return (
            f"{self.batch}, {self.channels}→{self.out_channels}, {self.height}×{self.width}, "
            f"{self.kernel}×{self.kernel}, {self.dilation}, {self.offset_groups}{groups}"
        )

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)

    def tensors(self, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """input [N, C, H, W], offset [N, 2 G K, H, W], weight [O, C / groups, kh, kw], grad [N, O, H, W].

        They are drawn on `device`, whose numbers are its own.
        """
        random = partial(torch.randn, generator=torch.Generator(device).manual_seed(seed), device=device)
        size = (self.height, self.width)
        taps, inputs = self.kernel**2, self.channels // self.groups
        offset = random(self.batch, 2 * self.offset_groups * taps, *size) * self.spread
        weight = random(self.out_channels, inputs, self.kernel, self.kernel)
        return {
            "input": random(self.batch, self.channels, *size),
            "offset": _between_cells(offset, self.places),
            "weight": weight / (inputs * taps) ** 0.5,
            "grad": random(self.batch, self.out_channels, *size),
        }


@dataclass(frozen=True)
class CallRow(ConvRow):
    """A deformable convolution with a mask, or of tensors in another layout."""

    masked: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """That of a `ConvRow`, and what is special."""
        special = (", mask" if self.masked else "") + (", channels last" if self.channels_last else "")
        return super().name + special

    def tensors(self, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Those of a `ConvRow`; mask [N, G K, H, W] between 0 and 1; input, weight and grad in the layout."""
        tensors = super().tensors(seed, device)
        if self.masked:
            offset = tensors["offset"]
            generator = torch.Generator(device).manual_seed(seed + 1)
            shape = offset.shape[0], offset.shape[1] // 2, *offset.shape[2:]
            tensors["mask"] = torch.rand(shape, generator=generator, device=device)
        if self.channels_last:
            for name in ("input", "weight", "grad"):
                tensors[name] = tensors[name].to(memory_format=torch.channels_last)
        return tensors


@dataclass(frozen=True)
class VariantRow(CallRow):
    """A deformable convolution that is timed with its mask and without, in float32 and in half precision.

    bfloat16 has eight bits: it holds odd multiples of 1/8 below 32 exactly.
    """

    masked: bool = True
    places = 4

    @property
    def name(self) -> str:
        """That of a `ConvRow`."""
        return super(CallRow, self).name


@dataclass(frozen=True)
class PoolRow:
    """Deformable RoI pooling of one image's map at stride 16: position-sensitive, or all channels in every bin."""

    channels: int  # of the output
    position_sensitive: bool
    offset_classes: int
    sampling: str
    rois: int = 300
    bins: int = 7
    height: int = 38
    width: int = 63
    spread: float = 1.0  # standard deviation of the offsets, in eighths of the RoI's size

    @property
    def name(self) -> str:
        """In the order of `POOLING_HEAD`."""
        operator = "deform_ps_roi_pool" if self.position_sensitive else "deform_roi_pool"
        return (
            f"{operator}, {self.rois}, {self.channels}, {self.bins}×{self.bins}, "
            f"{self.height}×{self.width}, {self.sampling}"
        )

    @property
    def group_size(self) -> int:
        return self.bins if self.position_sensitive else 1

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """input [1, C G G, H, W], rois [R, 5], offset [R, 2 T, k, k], grad [R, C, k, k]."""
        generator = torch.Generator().manual_seed(seed)
        bins = (self.bins, self.bins)
        offset = torch.randn(self.rois, 2 * self.offset_classes, *bins, generator=generator) * self.spread
        return {
            "input": torch.randn(1, self.channels * self.group_size**2, self.height, self.width, generator=generator),
            "rois": self._rois(generator),
            "offset": _between_cells(offset),
            "grad": torch.randn(self.rois, self.channels, *bins, generator=generator),
        }

    def _rois(self, generator: torch.Generator) -> Tensor:
        unit = 4 * self.bins
        extent = torch.tensor([self.width * STRIDE, self.height * STRIDE])
        most = (extent // unit).clamp(max=20)
        sides = 1 + (torch.rand(self.rois, 2, generator=generator) * most).floor()
        size = unit * sides  # [R, 2]
        corner = (torch.rand(self.rois, 2, generator=generator) * (extent - size + 1)).floor()
        return torch.cat((torch.zeros(self.rois, 1), corner, corner + size - 1), dim=1)


def variants(rows: Sequence[ConvRow]) -> list[VariantRow]:
    """The plain ones of `rows`, to be timed beside themselves."""
    return [VariantRow(**asdict(row)) for row in rows if not isinstance(row, CallRow)]


def _between_cells(offset: Tensor, places: int = 256) -> Tensor:
    return (offset * places).floor().add(0.5) / places


CONVOLUTIONS = (
    ConvRow(1, 512, 512, 38, 63, dilation=2),
    ConvRow(1, 512, 512, 38, 63, dilation=2, offset_groups=4),
    ConvRow(1, 128, 128, 100, 168),
    ConvRow(2, 64, 64, 56, 56),
    ConvRow(1, 512, 512, 64, 128, dilation=2),
    ConvRow(1, 16, 16, 14, 14),
    ConvRow(1, 256, 256, 50, 84, groups=256),
    ConvRow(1, 256, 256, 50, 84, offset_groups=16, groups=256),
    ConvRow(1, 256, 256, 50, 84, groups=32),
    ConvRow(1, 64, 64, 180, 320, offset_groups=8),
    ConvRow(8, 64, 64, 56, 56),
    ConvRow(1, 3, 64, 224, 224, kernel=7, dilation=3),
    CallRow(1, 128, 128, 100, 168, channels_last=True),
    CallRow(1, 512, 512, 38, 63, dilation=2, masked=True),
    CallRow(1, 128, 128, 100, 168, masked=True),
    CallRow(1, 256, 256, 50, 84, offset_groups=16, groups=256, masked=True),
    CallRow(1, 64, 64, 180, 320, offset_groups=8, masked=True),
)
POOLINGS = (
    PoolRow(21, position_sensitive=True, offset_classes=21, sampling="paper"),
    PoolRow(21, position_sensitive=True, offset_classes=21, sampling="authors"),
    PoolRow(256, position_sensitive=False, offset_classes=1, sampling="paper"),
    PoolRow(256, position_sensitive=False, offset_classes=1, sampling="authors"),
)
