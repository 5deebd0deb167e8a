"""mmcv's deformable RoI pooling: `mmcv.ops.deform_roi_pool` and its layers.

It differs from the paper's and its authors': nothing is rounded, bins are averages of evenly spaced samples as in RoI
Align, and samples up to one cell outside read the border. It is computed by operations of PyTorch, on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from pliant.ops import _checks, bilinear


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling with the arguments and numbers of `mmcv.ops.deform_roi_pool`.

    Args:
        input: map `[B, C, H, W]`.
        rois: RoIs `[R, 5]`: index of the image, x0, y0, x1, y1.
        offset: offsets `[R, 2, ph, pw]` of the bins, x before y, in parts of the RoI's size; or None.
        output_size: number of bins (ph, pw).
        spatial_scale: cells of the map per image pixel.
        sampling_ratio: samples of a bin on each axis; 0 for one per cell.
        gamma: factor of the offsets.

    Returns:
        The averages of the bins `[R, C, ph, pw]`.

    Gradients flow to input and offset. They are the derivatives of the values; at samples outside the map, mmcv's
    kernels extrapolate the offset's gradient instead.

    Examples:
        >>> rois = torch.tensor([[0, 10.0, 20.0, 200.0, 300.0]])  # image, x0, y0, x1, y1
        >>> offset = torch.zeros(1, 2, 7, 7)
        >>> pliant.compat.mmcv.deform_roi_pool(torch.rand(1, 8, 24, 32), rois, offset, 7, 1 / 16).shape
        torch.Size([1, 8, 7, 7])
    """
    bins = _pair(output_size)
    _check(input, rois, offset, bins)
    boxes = rois[:, 1:].to(input.dtype) * spatial_scale - 0.5
    start, size = boxes[:, :2].flip(1), (boxes[:, 2:] - boxes[:, :2]).flip(1)  # [R, 2], vertical before horizontal
    counts = torch.full_like(size, sampling_ratio)
    if sampling_ratio <= 0:
        counts = (size / torch.tensor(bins, dtype=size.dtype, device=size.device)).ceil().clamp(min=0)
    start = start[:, :, None, None].expand(-1, -1, *bins)
    if offset is not None and offset.numel():
        start = start + gamma * size[:, :, None, None] * offset.flip(1)  # [R, 2, ph, pw]
    table = input.permute(0, 2, 3, 1).reshape(-1, input.shape[1])
    out = input.new_zeros(len(rois), *bins, input.shape[1])
    for pair in counts.unique(dim=0).long().tolist():
        if 0 in pair:
            continue
        chosen = (counts == torch.tensor(pair, dtype=counts.dtype, device=counts.device)).all(1).nonzero()[:, 0]
        image = rois[chosen, 0].long()
        averages = _averages(table, input.shape, image, start[chosen], size[chosen], (pair[0], pair[1]))
        out = out.index_put((chosen,), averages)
    return out.permute(0, 3, 1, 2).contiguous()


def _averages(
    table: Tensor, shape: torch.Size, image: Tensor, start: Tensor, size: Tensor, samples: tuple[int, int]
) -> Tensor:
    """Averages of the bins `[R, ph, pw, C]`, which begin at `start` `[R, 2, ph, pw]` plus their place in the RoI."""
    height, width = shape[2:]
    rois, _, rows, columns = start.shape
    axes = []
    for axis, (count, length) in enumerate(zip(samples, (height, width), strict=True)):
        side = size[:, axis, None, None, None] / (rows, columns)[axis]  # of a bin
        place = torch.arange((rows, columns)[axis], device=start.device).view((-1, 1, 1) if axis == 0 else (1, -1, 1))
        within = (torch.arange(count, device=start.device) + 0.5) * side / count
        axes.append(_axis(start[:, axis, :, :, None] + place * side + within, length))
    (cell_y, weight_y), (cell_x, weight_x) = axes  # [R, ph, pw, 2 * samples]
    row = (image.view(-1, 1, 1, 1, 1) * height + cell_y.unsqueeze(-1)) * width + cell_x.unsqueeze(-2)
    weight = weight_y.unsqueeze(-1) * weight_x.unsqueeze(-2) / (samples[0] * samples[1])
    bins = rois * rows * columns
    sums = bilinear.weighted_rows(table, row.reshape(bins, -1), weight.reshape(bins, -1))
    return sums.reshape(rois, rows, columns, -1)


def _axis(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cells and weights `[R, ph, pw, 2 * samples]` of positions `[R, ph, pw, samples]` on one axis, as in RoI Align."""
    inner = position.clamp(0, size - 1)
    low = inner.detach().nan_to_num(0.0).floor().long()
    fraction = inner - low
    weight = torch.stack((1 - fraction, fraction), dim=-1)
    outside = (position < -1) | (position > size)
    weight = weight.masked_fill(outside.unsqueeze(-1), 0.0)
    return torch.stack((low, (low + 1).clamp(max=size - 1)), dim=-1).flatten(3), weight.flatten(3)


def _check(input: Tensor, rois: Tensor, offset: Tensor | None, bins: tuple[int, int]) -> None:
    _checks.tensor("input", input, 4)
    _checks.tensor("rois", rois, 2)
    if rois.shape[1] != 5:
        raise _checks.ShapeError(f"rois must have shape [R, 5] (image, x0, y0, x1, y1), got {list(rois.shape)}")
    if offset is not None and offset.numel() and list(offset.shape) != [len(rois), 2, *bins]:
        raise _checks.ShapeError(f"offset must have shape {[len(rois), 2, *bins]}, got {list(offset.shape)}")
    if len(rois) and not (rois[:, 0].min() >= 0 and rois[:, 0].max() < len(input)):
        raise _checks.ArgumentError(f"rois must name one of {len(input)} images, got {rois[:, 0].unique().tolist()}")


class DeformRoIPool(nn.Module):
    """`mmcv.ops.DeformRoIPool`: `deform_roi_pool` as a module.

    Args:
        output_size, spatial_scale, sampling_ratio, gamma: see `deform_roi_pool`.

    Examples:
        >>> pool = pliant.compat.mmcv.DeformRoIPool(7, spatial_scale=1 / 16)
        >>> pool(torch.rand(1, 8, 24, 32), torch.tensor([[0, 10.0, 20.0, 200.0, 300.0]])).shape
        torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = float(spatial_scale)
        self.sampling_ratio = int(sampling_ratio)
        self.gamma = float(gamma)

    def forward(self, input: Tensor, rois: Tensor, offset: Tensor | None = None) -> Tensor:
        return deform_roi_pool(
            input, rois, offset, self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma
        )


class DeformRoIPoolPack(DeformRoIPool):
    """`mmcv.ops.DeformRoIPoolPack`: it predicts the offsets of its bins from the bins at rest.

    Args:
        output_size, spatial_scale, sampling_ratio, gamma: see `deform_roi_pool`.
        output_channels: channels of the input.
        deform_fc_channels: width of the fully connected layers.

    Attributes:
        offset_fc: three fully connected layers, the last one initially zero.

    Examples:
        >>> pool = pliant.compat.mmcv.DeformRoIPoolPack(3, 8, deform_fc_channels=16, spatial_scale=1 / 16)
        >>> pool(torch.rand(1, 8, 24, 32), torch.tensor([[0, 10.0, 20.0, 200.0, 300.0]])).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        output_channels: int,
        deform_fc_channels: int = 1024,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.output_channels = output_channels
        self.deform_fc_channels = deform_fc_channels
        bins = self.output_size[0] * self.output_size[1]
        self.offset_fc = nn.Sequential(
            nn.Linear(bins * output_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            nn.Linear(deform_fc_channels, deform_fc_channels),
            nn.ReLU(inplace=True),
            _zero(nn.Linear(deform_fc_channels, bins * 2)),
        )

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        return self._moved(input, rois, self._at_rest(input, rois))

    def _at_rest(self, input: Tensor, rois: Tensor) -> Tensor:
        if input.shape[1] != self.output_channels:
            raise _checks.ShapeError(f"input must have {self.output_channels} channels, got {list(input.shape)}")
        return super().forward(input, rois).flatten(1)

    def _moved(self, input: Tensor, rois: Tensor, at_rest: Tensor) -> Tensor:
        offset = self.offset_fc(at_rest).view(-1, 2, *self.output_size)
        return super().forward(input, rois, offset)


class ModulatedDeformRoIPoolPack(DeformRoIPoolPack):
    """`mmcv.ops.ModulatedDeformRoIPoolPack`: it predicts the offsets of its bins, and a factor for each.

    Args:
        args, kwargs: see `DeformRoIPoolPack`.

    Attributes:
        offset_fc: three fully connected layers, the last one initially zero.
        mask_fc: two fully connected layers and a sigmoid, initially a half.

    Examples:
        >>> pool = pliant.compat.mmcv.ModulatedDeformRoIPoolPack(3, 8, deform_fc_channels=16, spatial_scale=1 / 16)
        >>> pool(torch.rand(1, 8, 24, 32), torch.tensor([[0, 10.0, 20.0, 200.0, 300.0]])).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, *args: int | float | tuple[int, int], **kwargs: int | float | tuple[int, int]) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        bins = self.output_size[0] * self.output_size[1]
        self.mask_fc = nn.Sequential(
            nn.Linear(bins * self.output_channels, self.deform_fc_channels),
            nn.ReLU(inplace=True),
            _zero(nn.Linear(self.deform_fc_channels, bins)),
            nn.Sigmoid(),
        )

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:  # type: ignore[override]
        at_rest = self._at_rest(input, rois)
        mask = self.mask_fc(at_rest).view(-1, 1, *self.output_size)
        return self._moved(input, rois, at_rest) * mask


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
