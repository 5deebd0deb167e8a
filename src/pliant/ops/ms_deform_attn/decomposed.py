"""Multi-scale deformable attention of ordinary operations, for formats that know no others (ONNX's GridSample)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """As the operator, of levels that lie end to end in the rows of `value`."""
    images, _, heads, channels = value.shape
    maps = value.permute(0, 2, 3, 1)  # [N, M, D, S]
    grids = (2 * locations - 1).to(value.dtype).transpose(1, 2)  # [N, M, Q, L, P, 2], -1 to 1 from edge to edge
    weights = weights.to(value.dtype).transpose(1, 2)  # [N, M, Q, L, P]
    total, start = None, 0
    for level, (height, width) in enumerate(shapes):
        of_level = maps[..., start : start + height * width].reshape(images * heads, channels, height, width)
        grid = grids[:, :, :, level].flatten(0, 1)  # [N * M, Q, P, 2]
        read = F.grid_sample(of_level, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weighted = (read * weights[:, :, :, level].flatten(0, 1).unsqueeze(1)).sum(-1)  # [N * M, D, Q]
        total = weighted if total is None else total + weighted
        start = start + height * width
    assert total is not None
    return total.reshape(images, heads * channels, -1).transpose(1, 2)
