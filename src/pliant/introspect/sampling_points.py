"""The positions that a unit samples through stacked deformable layers (Dai et al. 2017, figures 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pliant.introspect.recording import Pooled, Recording, Size, Step, Window, record

_MOST_POINTS = 1 << 22


class SamplingPoints(NamedTuple):
    """The positions that one unit samples.

    Attributes:
        cells: positions (y, x) in cells of the map that feeds the lowest layer, float `[P, 2]`, 0 at the centre of a
            cell. P is the product of the layers' numbers of taps: 9, 81, 729 for one, two, three 3x3 layers.
        pixels: the same in image pixels (y, x), float `[P, 2]`, 0 at the edge of the image. A position of the map is at
            the centre of its receptive field, computed from the strides and paddings of the layers below.
        unit: the unit itself in image pixels, float `[2]`.
        inside: whether the network reads the position, bool `[P]`: the position, and the one above that it belongs to,
            are less than a cell outside their maps. Other positions read the zeros of the padding.
    """

    cells: Tensor
    pixels: Tensor
    unit: Tensor
    inside: Tensor


class Trace:
    """Where every deformable layer of a model sampled on one image.

    A trace runs the model once and works on any PyTorch model: with `pliant.nn.DeformConv2d`,
    `torchvision.ops.DeformConv2d`, or calls of either function. Between deformable layers it follows convolutions,
    poolings, padding, crops and interpolation by their geometry, and all operators that work position by position
    (norms, activations, 1x1 and linear layers, permutations of dimensions). Where branches meet it follows the main
    one: in a sum or concatenation the branch with the most deformable layers, then with the most layers, not the
    shortcut; in a product not the gate. Weighted samples (modulation, gates) count as read.

    Args:
        model: any model. It runs once, in evaluation mode, and is left as it was.
        image: `[3, H, W]` as the model takes it.

    Attributes:
        layers: names of the deformable convolutions, in order of execution.

    Examples:
        >>> layers = [pliant.nn.DeformConv2d(3, 8, 3, padding=1), pliant.nn.DeformConv2d(8, 8, 3, padding=1)]
        >>> trace = pliant.introspect.Trace(torch.nn.Sequential(*layers), torch.rand(3, 32, 32))
        >>> trace.layers
        ('0', '1')
        >>> unit = trace.nearest((16.5, 8.5))  # the unit nearest to a pixel (y, x)
        >>> unit, trace.points(unit, depth=2).pixels.shape
        ((16, 8), torch.Size([81, 2]))
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self._recording: Recording = record(model, image)
        self.layers = tuple(step.name for step in self._recording.layers)

    @property
    def image_size(self) -> Size:
        """Height and width of the image."""
        return self._recording.image

    @property
    def pools(self) -> Sequence[Pooled]:
        """The deformable RoI poolings that ran."""
        return self._recording.pools

    def step(self, layer: str | None = None) -> Step:
        """A deformable layer as it ran, by default the last one.

        Raises:
            ValueError: if no layer of that name ran.
        """
        if not self.layers:
            raise ValueError("no deformable convolution ran")
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer must be one of {', '.join(self.layers)}, got {layer!r}")
        return self._recording.layers[-1 if layer is None else self.layers.index(layer)]

    def map_size(self, layer: str | None = None) -> Size:
        """Rows and columns of the output of a layer, by default of the last one."""
        return self.step(layer).size

    def chain(self, depth: int, layer: str | None = None) -> list[Step]:
        """The steps from a layer down to the `depth`-th deformable one, both included.

        Raises:
            ValueError: if there are fewer deformable layers below.
        """
        top = self.step(layer)
        if not 1 <= depth <= top.deformable:
            raise ValueError(
                f"depth must be 1 to {top.deformable}, the deformable layers on the path to {top.name}, got {depth}"
            )
        steps: list[Step] = []
        for step in top.chain():
            if step.lost:
                raise ValueError(f"{top.name} cannot be followed to depth {depth} through {step.lost} in {step.name}")
            steps.append(step)
            if sum(map(_is_deformable, steps)) == depth:
                break
        return steps

    def points(
        self,
        at: tuple[int, int],
        depth: int = 3,
        *,
        layer: str | None = None,
        offset_group: int = 0,
        regular: bool = False,
    ) -> SamplingPoints:
        """Follow a unit back through `depth` deformable layers, see `sampling_points`.

        Args:
            at: (row, column) of the unit in the output map of the layer.
            depth: number of deformable layers, this one included.
            layer: layer to start from, by default the last deformable layer.
            offset_group: offset group to follow in every layer.
            regular: ignore the offsets, which gives the grid of the plain network.

        Returns:
            The `SamplingPoints` of the unit.
        """
        chain = self.chain(depth, layer)
        size = chain[0].size
        if not (0 <= at[0] < size[0] and 0 <= at[1] < size[1]):
            raise ValueError(f"at must lie in the layer's map of {list(size)}, got {list(at)}")
        points = torch.tensor([at], dtype=torch.float64)
        inside = torch.ones(1, dtype=torch.bool)
        for step in chain:
            assert step.below is not None
            points = _read(step, points, None if regular else offset_group)
            inside = inside.repeat_interleave(len(points) // len(inside)) & _on_map(points, step.below.size)
        lowest = chain[-1].below
        assert lowest is not None
        unit = self.pixels(chain[0], torch.tensor(at, dtype=torch.float64))
        return SamplingPoints(points, self.pixels(lowest, points), unit, inside)

    def pixels(self, step: Step, cells: Tensor) -> Tensor:
        """Image pixels `[..., 2]` at which positions `[..., 2]` of a step's output map are centred."""
        scale, shift = self.centring(step)
        return cells * scale + shift

    def centring(self, step: Step) -> tuple[Tensor, Tensor]:
        """Scale and shift, `[2]` each: pixel = cell * scale + shift, with pixels counted from the edge of the image.

        If the path to the image cannot be followed, the remaining map is taken to cover the image evenly.
        """
        chain = list(step.chain())
        scale, shift = centring(chain)
        ratio = torch.tensor(self.image_size, dtype=torch.float64) / torch.tensor(chain[-1].size)
        return scale * ratio, (shift + 0.5) * ratio

    def nearest(self, pixel: tuple[float, float], layer: str | None = None) -> tuple[int, int]:
        """The unit (row, column) of a layer that is centred nearest to an image pixel (y, x)."""
        scale, shift = self.centring(self.step(layer))
        cell = ((torch.tensor(pixel, dtype=torch.float64) - shift) / scale + 0.5).floor()
        last = torch.tensor(self.map_size(layer)) - 1
        row, column = torch.minimum(cell.clamp(min=0), last.double()).int().tolist()
        return row, column


def sampling_points(
    model: nn.Module,
    image: Tensor,
    at: tuple[int, int],
    depth: int = 3,
    *,
    layer: str | None = None,
    offset_group: int = 0,
) -> SamplingPoints:
    """Follow a unit of a deformable layer back through `depth` deformable layers and the plain layers between them.

    Positions are composed exactly, without rounding to cells. Below the first level a position lies between cells; the
    offsets of that layer are then interpolated bilinearly (outside the map, at the nearest cell). Layers with zero
    offsets give exactly the regular grid. `Trace` documents which models and layers can be followed, and follows
    many units of a single run.

    Args:
        model: any model with deformable convolutions. It runs once, in evaluation mode, and is left as it was.
        image: `[3, H, W]` as the model takes it.
        at: (row, column) of the unit in the output map of the layer.
        depth: number of deformable layers to follow, the last ones up to `layer` in order of execution.
        layer: name of the module, by default the last deformable layer.
        offset_group: offset group to follow in every layer.

    Returns:
        The `SamplingPoints` of the unit.

    Raises:
        ValueError: if the model does not have this depth, layer, unit or group, or the path between the layers cannot
            be followed.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=1))
        >>> points = pliant.introspect.sampling_points(model, torch.rand(3, 32, 32), at=(10, 20), depth=1)
        >>> points.cells.int().tolist()[:3]  # the top row of the kernel
        [[9, 19], [9, 20], [9, 21]]
    """
    return Trace(model, image).points(at, depth, layer=layer, offset_group=offset_group)


def centring(steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Scale and shift `[2]`: position = cell * scale + shift, from the first step's output to the last's input."""
    scale, shift = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in steps:
        if step.window is not None:
            stride, padding, dilation = _numbers(step.window)
            reach = dilation * (torch.tensor(step.window.kernel) - 1) / 2
            scale, shift = scale * stride, shift * stride - padding + reach
    return scale, shift


def taps(window: Window) -> Tensor:
    """The positions of a window without offsets, `[K, 2]`, relative to its first tap."""
    rows, columns = window.kernel
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2) * torch.tensor(window.dilation)


def _is_deformable(step: Step) -> bool:
    return step.window is not None and step.window.offset is not None


def _numbers(window: Window) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation = torch.tensor(window[1:4], dtype=torch.float64)
    return stride, padding, dilation


def _read(step: Step, points: Tensor, group: int | None) -> Tensor:
    """The positions `[P * K, 2]` of a step's input that its output at `points` `[P, 2]` reads."""
    window = step.window
    assert window is not None
    regular = taps(window)
    if len(points) * len(regular) > _MOST_POINTS:
        raise ValueError(f"at {step.name} there are {len(points) * len(regular)} points; use a smaller depth")
    stride, padding, _ = _numbers(window)
    read = (points * stride - padding).unsqueeze(1) + regular  # [P, K, 2]
    if window.offset is not None and group is not None:
        if not 0 <= group < len(window.offset):
            raise ValueError(f"offset_group must be below {len(window.offset)} in {step.name}, got {group}")
        read = read + _at(window.offset[group].double(), points)
    return read.flatten(0, 1)


def _on_map(points: Tensor, size: Size) -> Tensor:
    return ((points > -1) & (points < torch.tensor(size))).all(dim=1)


def _at(maps: Tensor, points: Tensor) -> Tensor:
    """Maps `[K, 2, H, W]` interpolated bilinearly at `[P, 2]`: `[P, K, 2]`."""
    size = torch.tensor(maps.shape[2:])
    inner = torch.minimum(points.clamp(min=0), (size - 1).double())
    low = inner.floor().long()
    high = torch.minimum(low + 1, size - 1)
    part = inner - low
    y, x = part[:, 0], part[:, 1]
    top = maps[..., low[:, 0], low[:, 1]] * (1 - x) + maps[..., low[:, 0], high[:, 1]] * x
    bottom = maps[..., high[:, 0], low[:, 1]] * (1 - x) + maps[..., high[:, 0], high[:, 1]] * x
    return (top * (1 - y) + bottom * y).permute(2, 0, 1)
