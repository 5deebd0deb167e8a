"""Layers that predict where they sample, and the plain poolings beside them."""

from __future__ import annotations

from pliant.nn.aggregation import DCNv3, DCNv4
from pliant.nn.attention import MultiScaleDeformableAttention
from pliant.nn.convolution import DeformConv2d, DeformConv2dSame
from pliant.nn.roi_pooling import DeformPSRoIPool, DeformRoIPool, PSRoIPool, RoIPool

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DeformConv2dSame",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "MultiScaleDeformableAttention",
    "PSRoIPool",
    "RoIPool",
]
