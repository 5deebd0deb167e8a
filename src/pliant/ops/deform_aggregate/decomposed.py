"""Deformable aggregation of ordinary operations, for formats that know no others (ONNX's GridSample)."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.ops.deform_aggregate.geometry import Geometry
from pliant.ops.deform_aggregate.reference import compute_dtype, positions
from pliant.ops.ms_deform_attn import decomposed


def deform_aggregate(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """As the operator: attention of output cells to the points of one map."""
    images, height, width, channels = input.shape
    groups, points = mask.shape[3:]
    y, x = positions(offset.to(compute_dtype(input)), geometry)
    locations = torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=-1)  # [N, Ho, Wo, G, P, 2]
    out = decomposed.ms_deform_attn(
        input.reshape(images, height * width, groups, channels // groups),
        [(height, width)],
        locations.reshape(images, -1, groups, 1, points, 2),
        mask.reshape(images, -1, groups, 1, points),
    )
    return out.reshape(*mask.shape[:3], channels)
