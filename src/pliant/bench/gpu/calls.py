"""Calls of the operators to compare with float64, with all arguments and with rare shapes and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pliant import ops
from pliant.bench.gpu.problems import DTYPES, LAYOUTS, ROWS, shrunk
from pliant.bench.gpu.steps import Place
from pliant.bench.rows import GAMMA, POOLINGS, STRIDE, ConvRow, PoolRow

Name = TypeVar("Name")
_KEPT = ("rois", "offset", "mask", "sampling_locations")  # in float32

# Of the largest magnitude, or of one where all are smaller: what the sums and the last rounding may be off.
TOLERANCE = {"bfloat16": 1.6e-2, "float16": 2e-3, "tf32": 4e-3, "float32": 2e-5}


@dataclass(frozen=True)
class Call:
    """An operator, its tensors, and its other arguments."""

    name: str
    operator: Callable[..., Tensor]
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepared(self, dtype: str, layout: str = "contiguous") -> dict[str, Tensor]:
        """Return copies of the tensors in a dtype and layout. Positions stay in float32."""
        found = {}
        for name, value in self.tensors.items():
            wanted = value.dtype if name in _KEPT else DTYPES[dtype]
            kept = value.detach().to(wanted, copy=True)
            if kept.dim() == 4:
                kept = kept.contiguous(memory_format=LAYOUTS[layout])
            found[name] = kept.requires_grad_(name != "rois")
        return found

    def results(self, tensors: Mapping[str, Tensor], grad: Tensor | None = None) -> dict[str, Tensor]:
        """Return the output and the gradients of all tensors, for `grad` or for a random gradient of the output."""
        out = self.operator(**tensors, **self.options)
        if grad is None:
            grad = drawn_grad(out)
        leaves = {name: value for name, value in tensors.items() if value.requires_grad}
        found = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
        return {"output": out.detach(), **{f"grad_{name}": value for name, value in zip(leaves, found, strict=True)}}


def drawn_grad(out: Tensor) -> Tensor:
    """Draw a gradient of the output. It is the same each time, and exact in every dtype here."""
    generator = torch.Generator(out.device).manual_seed(1)
    return torch.randn(out.shape, generator=generator, device=out.device).bfloat16().to(out.dtype)


def convolution(name: str, row: ConvRow, device: str, *, stride: int = 1, border: str = "paper") -> Call:
    """Return a row with a mask and a bias. With a stride, the offsets of the remaining output cells are kept."""
    made = row.tensors(device=device)
    generator = torch.Generator(device).manual_seed(2)
    offset = made["offset"][:, :, ::stride, ::stride].contiguous()
    batch, channels, *size = offset.shape
    tensors = {
        "input": made["input"],
        "offset": offset,
        "weight": made["weight"],
        "bias": torch.randn(row.out_channels, generator=generator, device=device),
        "mask": torch.rand(batch, channels // 2, *size, generator=generator, device=device),
    }
    options = {"stride": stride, "padding": row.padding, "dilation": row.dilation, "border": border}
    return Call(name, ops.deform_conv2d, tensors, options)


def rows(place: Place) -> list[ConvRow]:
    """Return the rows of the benchmark in batches of two."""
    every = [replace(row, batch=2) for row in ROWS]
    return [shrunk(every[0]), shrunk(every[-2])] if place.tiny else every


def seldom(place: Place) -> list[Call]:
    """Return rare convolutions: borders, strides, groups, empty batches, and offsets that are huge or NaN."""
    device = place.device
    base = ConvRow(2, 24, 16, 13, 11, dilation=2, offset_groups=3, groups=2)
    if place.tiny:
        base = ConvRow(2, 4, 4, 4, 3, offset_groups=2, groups=2)
    plain = convolution("without mask and bias", base, device)
    calls = [
        Call(plain.name, plain.operator, {n: plain.tensors[n] for n in ("input", "offset", "weight")}, plain.options),
        convolution("border of the authors", base, device, border="authors"),
        convolution("stride 2", base, device, stride=2),
        convolution("stride 3, border of the authors", base, device, stride=3, border="authors"),
        convolution("no images", replace(base, batch=0), device),
        convolution("a map of one cell", replace(base, height=1, width=1), device),
        convolution("pointwise", replace(base, kernel=1, dilation=1), device),
        convolution("a kernel of 5x5", replace(base, kernel=5, dilation=1), device),
        convolution("depthwise", replace(base, channels=24, out_channels=24, groups=24), device),
        convolution("channels that fill no tile", ConvRow(1, 70, 90, 9, 33), device),
        convolution("offsets far beyond the map", replace(base, spread=60.0), device),
    ]
    for what, values in (("infinite and huge", (1e6, -1e30, float("inf"), -float("inf"))), ("NaN", (float("nan"),))):
        call = convolution(f"offsets {what}", base, device)
        offset = call.tensors["offset"].clone()
        for at, value in enumerate(values):
            offset[0, 3 + at, at, 2] = value
            offset[1, 20 + at, at] = value
        calls.append(replace(call, tensors={**call.tensors, "offset": offset}))
    return calls[-1:] if place.tiny else calls


def poolings(place: Place) -> list[Call]:
    """Return the rows of deformable pooling."""
    found = []
    for row in POOLINGS[1:3] if place.tiny else POOLINGS:
        if place.tiny:
            row = replace(row, channels=2, rois=3, bins=2, height=8, width=9,
                          offset_classes=min(row.offset_classes, 2))  # fmt: skip
        found.append(_pooling(row, place.device))
    return found


def attention(place: Place) -> Call:
    """Return attention on several maps. No location is the centre of a cell, where gradients jump."""
    sides: tuple[int, ...] = (64, 32, 16, 8)
    heads, channels, points, queries = 8, 32, 4, 900
    if place.tiny:
        sides, heads, channels, points, queries = (4, 2), 2, 4, 1, 3
    generator = torch.Generator(place.device).manual_seed(3)
    random = partial(torch.randn, generator=generator, device=place.device)
    size = torch.tensor(sides, device=place.device).view(-1, 1, 1)
    spread = random(2, queries, heads, len(sides), points, 2) * size / 4 + size / 2  # in cells, some of them outside
    weights = random(2, queries, heads, len(sides) * points).softmax(-1)
    tensors = {
        "value": random(2, sum(side**2 for side in sides), heads, channels),
        "sampling_locations": ((spread * 128).floor() + 0.5) / 128 / size,
        "attention_weights": weights.unflatten(3, (-1, points)),
    }
    options = {"spatial_shapes": [(side, side) for side in sides], "level_start_index": None}
    return Call(f"{queries} queries, {heads} heads of {channels}", ops.ms_deform_attn, tensors, options)


def _pooling(row: PoolRow, device: str) -> Call:
    tensors = {name: value.to(device) for name, value in row.tensors().items() if name != "grad"}
    operator = ops.deform_ps_roi_pool if row.position_sensitive else ops.deform_roi_pool
    options = {"output_size": row.bins, "spatial_scale": 1 / STRIDE, "gamma": GAMMA, "sampling": row.sampling}
    return Call(row.name, operator, tensors, options)


def errors(got: Mapping[Name, Tensor], want: Mapping[Name, Tensor]) -> dict[Name, float]:
    """Return the largest difference of each tensor, relative to its largest magnitude or to 1.

    The difference is infinite if shapes differ, or if NaN is in other places.
    """
    found = {}
    for name, value in want.items():
        mine = got[name].double()
        if mine.shape != value.shape or not torch.equal(mine.isnan(), value.isnan()):
            found[name] = float("inf")
            continue
        if not value.numel():
            found[name] = 0.0
            continue
        apart = (mine - value).nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf).abs().max()
        found[name] = float(apart / value.nan_to_num(0.0).abs().max().clamp(min=1.0))
    return found


def reference(call: Call, given: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Run the call in float64, for which every device uses the reference."""
    wide = {name: value.detach().double().requires_grad_(value.requires_grad) for name, value in given.items()}
    return call.results(wide, grad.double())
