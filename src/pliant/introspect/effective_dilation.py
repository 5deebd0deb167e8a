"""Effective dilation of deformable filters by the size of the object under them (Dai et al. 2017, table 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pliant.introspect.recording import Window
from pliant.introspect.sampling_points import Trace, taps

GROUPS = ("small", "medium", "large", "background")


class Spread(NamedTuple):
    """Mean, standard deviation and number of some values; NaN if there are none."""

    mean: float
    std: float
    number: int


class EffectiveDilation:
    """Mean and standard deviation of the effective dilation of every deformable layer over images.

    The effective dilation of a filter at one position is the mean distance between the sampling positions of taps that
    are neighbours in a row or column of the kernel (12 pairs in a 3x3 kernel), averaged over offset groups, in cells of
    its input map. Without offsets it is the dilation of the layer. A position belongs to the smallest box that contains
    its centre, otherwise to the background.

    Args:
        model: any model with deformable convolutions, see `Trace`.
        areas: areas in square pixels. Objects below the first are small, above the second large.

    Raises:
        ValueError: if the areas are not positive and increasing.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=2, dilation=2))
        >>> dilation = pliant.introspect.EffectiveDilation(model)
        >>> dilation.update(torch.rand(3, 32, 32), torch.tensor([[4.0, 4.0, 20.0, 20.0]]))
        >>> dilation.compute()["0"]["small"]
        Spread(mean=2.0, std=0.0, number=256)
    """

    def __init__(self, model: nn.Module, areas: tuple[float, float] = (96.0**2, 224.0**2)) -> None:
        if not 0 < areas[0] < areas[1]:
            raise ValueError(f"areas must be positive and increase, got {areas}")
        self.model = model
        self.areas = areas
        self._spreads: dict[str, Tensor] = {}  # [groups, 3]: count, mean, sum of squared distances from the mean

    def update(self, image: Tensor, boxes: Tensor) -> None:
        """Add all positions of all layers on an image.

        Args:
            image: `[3, H, W]` as the model takes it.
            boxes: boxes of the objects `[N, 4]` (x0, y0, x1, y1) in pixels of that image; N may be 0.

        Raises:
            ValueError: if boxes have another shape, or no deformable convolution with several taps ran.
        """
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes must have shape [N, 4], got {list(boxes.shape)}")
        trace = Trace(self.model, image)
        found = False
        for layer in trace.layers:
            window = trace.step(layer).window
            if window is None or window.kernel == (1, 1):
                continue
            found = True
            values = effective_dilation(window)  # [Ho, Wo]
            rows, columns = (torch.arange(size) for size in values.shape)
            centres = trace.pixels(trace.step(layer), torch.cartesian_prod(rows, columns).double())
            groups = self._groups(centres, boxes.double().cpu())
            new = torch.stack([_moments(values.flatten()[groups == group]) for group in range(len(GROUPS))])
            self._spreads[layer] = _merged(self._spreads[layer], new) if layer in self._spreads else new
        if not found:
            raise ValueError("no deformable convolution with more than one tap ran")

    def compute(self) -> dict[str, dict[str, Spread]]:
        """By layer in order of execution, then by group: `"small"`, `"medium"`, `"large"` and `"background"`."""
        return {
            layer: {group: _spread(*line) for group, line in zip(GROUPS, spreads.tolist(), strict=True)}
            for layer, spreads in self._spreads.items()
        }

    def _groups(self, centres: Tensor, boxes: Tensor) -> Tensor:
        """The index in `GROUPS` of each of `[P, 2]` positions (y, x)."""
        if not len(boxes):
            return torch.full((len(centres),), GROUPS.index("background"))
        y, x = (axis.unsqueeze(1) for axis in centres.unbind(1))
        inside = (x >= boxes[:, 0]) & (y >= boxes[:, 1]) & (x < boxes[:, 2]) & (y < boxes[:, 3])  # [P, N]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        smallest = torch.where(inside, area, torch.inf).amin(dim=1)
        size = (smallest >= self.areas[0]).long() + (smallest > self.areas[1]).long()
        return torch.where(smallest.isinf(), GROUPS.index("background"), size)


def effective_dilation(window: Window) -> Tensor:
    """Mean distance of neighbouring taps at every position of the output, `[Ho, Wo]`, in cells of the input."""
    assert window.offset is not None
    places = window.offset.double() + taps(window)[..., None, None]  # [G, K, 2, Ho, Wo]
    places = places.unflatten(1, window.kernel)
    down = (places[:, 1:] - places[:, :-1]).norm(dim=3).flatten(1, 2)
    right = (places[:, :, 1:] - places[:, :, :-1]).norm(dim=3).flatten(1, 2)
    return torch.cat((down, right), dim=1).mean(dim=(0, 1))


def _spread(number: float, mean: float, square: float) -> Spread:
    return Spread(mean, (square / number) ** 0.5, int(number)) if number else Spread(float("nan"), float("nan"), 0)


def _moments(values: Tensor) -> Tensor:
    if not len(values):
        return torch.zeros(3, dtype=torch.float64)
    variance, mean = torch.var_mean(values, correction=0)
    return torch.stack((torch.tensor(float(len(values)), dtype=torch.float64), mean, variance * len(values)))


def _merged(old: Tensor, new: Tensor) -> Tensor:
    """Merge counts, means and sums of squares `[groups, 3]` of two sets of values (Chan, Golub and LeVeque 1979)."""
    (n, mean, square), (m, other, more) = old.unbind(1), new.unbind(1)
    count = n + m
    share = m / count.clamp(min=1)
    difference = other - mean
    return torch.stack((count, mean + difference * share, square + more + difference**2 * n * share), dim=1)
