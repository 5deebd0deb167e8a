"""Where a unit samples, through stacked deformable layers (Dai et al. 2017, figures 5 and 6)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d


class SamplingPoints(NamedTuple):
    """The places that one unit reads.

    Attributes:
        cells: float `[P, 2]`, (y, x) in cells of the map that feeds the lowest layer, 0 at a cell's centre. P is
            the product of the layers' numbers of taps: 9, 81, 729 for one, two, three 3x3 layers.
        pixels: float `[P, 2]`, the same in image pixels, (y, x), 0 at the image's edge.
        unit: float `[2]`, the unit itself in image pixels.
    """

    cells: Tensor
    pixels: Tensor
    unit: Tensor


class _Seen(NamedTuple):
    """One deformable layer as it ran on the first image of the batch."""

    name: str
    layer: DeformConv2d
    offset: Tensor  # [2 * G * K, Ho, Wo]
    in_size: tuple[int, int]


@torch.no_grad()
def sampling_points(
    model: nn.Module, image: Tensor, at: tuple[int, int], depth: int = 3, *, offset_group: int = 0
) -> SamplingPoints:
    """Follow a unit of the last deformable layer back through `depth` deformable layers.

    The composition is exact: nothing is rounded to cells on the way. Below the first level a point lies between
    cells; the offsets of the layer there are read bilinearly at that point (at the nearest cell for points outside
    the map). Layers with zero offsets give the regular grid exactly. Layers between the deformable ones must keep
    the size of the map, and count as reading in place (as 1x1 convolutions, norms and activations do).

    Args:
        model: any model with `pliant.nn.DeformConv2d` layers; it is run once, in evaluation mode, and left as it
            was.
        image: `[3, H, W]` as the model takes it.
        at: (row, column) of the unit, in the output map of the last deformable layer.
        depth: how many of the last deformable layers, in order of execution.
        offset_group: whose offsets to follow, in every layer.

    Raises:
        ValueError: for a depth, place or group that the model does not have, or layers that do not fit together.
    """
    layers = _run(model, image)
    if not 1 <= depth <= len(layers):
        raise ValueError(f"depth must be 1 to {len(layers)}, the deformable layers that ran, got {depth}")
    chain = layers[len(layers) - depth :]
    for below, above in pairwise(chain):
        if tuple(below.offset.shape[1:]) != above.in_size:
            raise ValueError(
                f"{below.name} gives a map of {list(below.offset.shape[1:])} and {above.name} reads one of "
                f"{list(above.in_size)}: something between them changes the size"
            )
    size = chain[-1].offset.shape[1:]
    if not (0 <= at[0] < size[0] and 0 <= at[1] < size[1]):
        raise ValueError(f"at must lie in the last layer's map of {list(size)}, got {list(at)}")
    points = torch.tensor([at], dtype=torch.float64)
    for seen in reversed(chain):
        points = _read_from(seen, points, offset_group)
    lengths = torch.tensor(image.shape[-2:], dtype=torch.float64)
    pixels = (points + 0.5) * lengths / torch.tensor(chain[0].in_size)
    unit = (torch.tensor(at) + 0.5) * lengths / torch.tensor(size)
    return SamplingPoints(points, pixels, unit)


def _run(model: nn.Module, image: Tensor) -> list[_Seen]:
    """Run the model once and note every deformable layer."""
    seen: list[_Seen] = []
    names = {module: name for name, module in model.named_modules() if isinstance(module, DeformConv2d)}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], branch: Any) -> None:
        owner = owners[layer]
        offset, _ = owner.split(branch)
        size = (inputs[0].shape[2], inputs[0].shape[3])
        seen.append(_Seen(names[owner], owner, offset[0].double().cpu(), size))

    owners: dict[nn.Module, DeformConv2d] = {layer.offset_conv: layer for layer in names}
    hooks = [branch.register_forward_hook(note) for branch in owners]
    was_training = [module for module in model.modules() if module.training]
    try:
        model.eval()(image.unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
        for module in was_training:
            module.training = True
    return seen


def _read_from(seen: _Seen, points: Tensor, group: int) -> Tensor:
    """The places `[P * K, 2]` in a layer's input that its output at `points` `[P, 2]` reads."""
    layer = seen.layer
    if not 0 <= group < layer.offset_groups:
        raise ValueError(f"offset_group must be below {layer.offset_groups} in {seen.name}, got {group}")
    rows, columns = layer.kernel_size
    taps = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)  # [K, 2]
    offset = seen.offset.unflatten(0, (layer.offset_groups, rows * columns, 2))[group]  # [K, 2, Ho, Wo]
    stride, padding, dilation = (torch.tensor(value) for value in (layer.stride, layer.padding, layer.dilation))
    regular = (points * stride - padding).unsqueeze(1) + taps * dilation  # [P, K, 2]
    return (regular + _at(offset, points)).flatten(0, 1)


def _at(maps: Tensor, points: Tensor) -> Tensor:
    """Maps `[K, 2, H, W]` read bilinearly at `[P, 2]`: `[P, K, 2]`."""
    size = torch.tensor(maps.shape[2:])
    inner = torch.minimum(points.clamp(min=0), (size - 1).double())
    low = inner.floor().long()
    high = torch.minimum(low + 1, size - 1)
    part = inner - low
    y, x = part[:, 0], part[:, 1]
    top = maps[..., low[:, 0], low[:, 1]] * (1 - x) + maps[..., low[:, 0], high[:, 1]] * x
    bottom = maps[..., high[:, 0], low[:, 1]] * (1 - x) + maps[..., high[:, 0], high[:, 1]] * x
    return (top * (1 - y) + bottom * y).permute(2, 0, 1)
