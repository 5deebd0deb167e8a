"""The operators as functions. Each operator's folder contains its mathematics, reference and kernels."""

from pliant.ops import batched_nms as _batched_nms  # noqa: F401  (registers the operator)
from pliant.ops.deform_aggregate import deform_aggregate
from pliant.ops.deform_conv2d import BORDERS, deform_conv2d
from pliant.ops.ms_deform_attn import ms_deform_attn
from pliant.ops.roi_pool import deform_ps_roi_pool, deform_roi_pool, ps_roi_pool, roi_pool

__all__ = [
    "BORDERS",
    "deform_aggregate",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "ms_deform_attn",
    "ps_roi_pool",
    "roi_pool",
]
