"""Asymmetric shapes for the operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConvCase:
    """One deformable convolution; pairs are (vertical, horizontal)."""

    batch: int = 2
    channels: int = 12
    out_channels: int = 8
    size: tuple[int, int] = (9, 7)
    kernel: tuple[int, int] = (3, 2)
    stride: tuple[int, int] = (2, 1)
    padding: tuple[int, int] = (1, 0)
    dilation: tuple[int, int] = (2, 1)
    groups: int = 2
    offset_groups: int = 3
    spread: float = 2.0

    @property
    def out_size(self) -> tuple[int, int]:
        height, width = (
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return height, width

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Input, offset, weight, bias and mask, all requiring gradients."""
        generator = torch.Generator().manual_seed(seed)
        taps = self.kernel[0] * self.kernel[1]
        shapes = {
            "input": (self.batch, self.channels, *self.size),
            "offset": (self.batch, 2 * self.offset_groups * taps, *self.out_size),
            "weight": (self.out_channels, self.channels // self.groups, *self.kernel),
            "bias": (self.out_channels,),
            "mask": (self.batch, self.offset_groups * taps, *self.out_size),
        }
        values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        values["offset"] *= self.spread
        return {name: value.requires_grad_() for name, value in values.items()}


CONV_CASES = {
    "torchvision's": ConvCase(channels=6, out_channels=2, size=(5, 4), batch=33),
    "plain": ConvCase(groups=1, offset_groups=1, stride=(1, 1), dilation=(1, 1), padding=(1, 1), kernel=(3, 3)),
    "empty batch": ConvCase(batch=0),
    "pointwise": ConvCase(kernel=(1, 1), padding=(0, 0), dilation=(1, 1), offset_groups=4, groups=4),
    "one-cell map": ConvCase(size=(1, 1), padding=(2, 1), stride=(1, 1), dilation=(1, 1)),
    "far offsets": ConvCase(spread=30.0),
    "wide kernel": ConvCase(kernel=(2, 5), size=(6, 11), padding=(0, 3), dilation=(1, 2), stride=(1, 3), groups=1),
}

# Image, x0, y0, x1, y1 in pixels of a map of stride 8 with 9 x 11 cells: inside, across the border, outside,
# without area, the whole map, and at halves where roundings differ.
ROIS = (
    (0, 3.2, 5.0, 60.0, 70.0),
    (1, -20.0, 0.0, 30.0, 44.0),
    (0, 60.0, 50.0, 300.0, 300.0),
    (1, 500.0, 500.0, 600.0, 600.0),
    (1, 8.0, 8.0, 8.0, 8.0),
    (0, 0.0, 0.0, 88.0, 72.0),
    (1, 12.5, 4.0, 44.5, 36.5),
)


def edge_rois(size: tuple[int, int], scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """RoIs `[R, 5]` with corners on and beside the edges of a map, along one axis and in the middle of the other.

    Corners lie inside, outside and on both edges, down to the next number of the dtype; RoIs are slivers, points, some
    cells long, and longer than the map.
    """
    lines = []
    for axis in (0, 1):
        edges = torch.tensor([0, size[axis] / scale], dtype=dtype)
        apart = torch.tensor([-40.0, -1.1, -0.5, -0.3, -1e-3, 0.0, 1e-3, 0.3, 0.5, 1.1, 40.0], dtype=dtype) / scale
        beside = torch.nextafter(edges, torch.tensor([[-torch.inf], [torch.inf]], dtype=dtype))
        corners = torch.cat(((edges[:, None] + apart).flatten(), beside.flatten())).unique()
        start, end = (corner.flatten() for corner in torch.meshgrid(corners, corners, indexing="ij"))
        along = torch.stack((start, end), dim=1)[start <= end]
        middle = torch.full_like(along, size[1 - axis] / scale / 2)
        x, y = (along, middle) if axis == 1 else (middle, along)
        lines.append(torch.stack((torch.zeros_like(x[:, 0]), x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1))
    return torch.cat(lines)


@dataclass(frozen=True)
class AttentionCase:
    """One call of multi-scale deformable attention; shapes are (height, width)."""

    batch: int = 2
    shapes: tuple[tuple[int, int], ...] = ((3, 4), (2, 3), (5, 3))
    heads: int = 3
    channels: int = 5
    queries: int = 7
    points: int = 4
    spread: float = 1.6

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Value, locations and weights, all requiring gradients."""
        generator = torch.Generator().manual_seed(seed)
        rows = sum(height * width for height, width in self.shapes)
        points = (self.batch, self.queries, self.heads, len(self.shapes), self.points)
        values = {
            "value": torch.randn(self.batch, rows, self.heads, self.channels, generator=generator, dtype=dtype),
            "locations": 0.5 + self.spread * (torch.rand(*points, 2, generator=generator, dtype=dtype) - 0.5),
            "weights": torch.randn(points, generator=generator, dtype=dtype),
        }
        return {name: value.requires_grad_() for name, value in values.items()}


@dataclass(frozen=True)
class AggregateCase:
    """One deformable aggregation; pairs are (vertical, horizontal)."""

    batch: int = 2
    size: tuple[int, int] = (7, 6)
    groups: int = 3
    channels: int = 5
    kernel: tuple[int, int] = (3, 2)
    stride: tuple[int, int] = (2, 1)
    padding: tuple[int, int] = (1, 2)
    dilation: tuple[int, int] = (1, 2)
    offset_scale: float = 0.7
    remove_center: bool = False
    spread: float = 1.5

    @property
    def out_size(self) -> tuple[int, int]:
        height, width = (
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        return height, width

    @property
    def points(self) -> int:
        return self.kernel[0] * self.kernel[1] - self.remove_center

    @property
    def options(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "offset_scale", "remove_center")
        return {"kernel_size": self.kernel, **{name: getattr(self, name) for name in names}}

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Input, offset and mask, all requiring gradients."""
        generator = torch.Generator().manual_seed(seed)
        points = (self.batch, *self.out_size, self.groups, self.points)
        shapes = {
            "input": (self.batch, *self.size, self.groups * self.channels),
            "offset": (*points, 2),
            "mask": points,
        }
        values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        values["offset"] *= self.spread
        return {name: value.requires_grad_() for name, value in values.items()}
