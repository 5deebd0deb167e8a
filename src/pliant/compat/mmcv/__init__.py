"""The deformable operators and layers of `mmcv.ops`: its arguments, numbers and state dicts, without its extension.

The names work without mmcv. `patch_mmcv` makes code run that imports `mmcv.ops` itself.
"""

from pliant.compat.mmcv.attention import MultiScaleDeformableAttention
from pliant.compat.mmcv.convolution import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
    with_offset_branches,
)
from pliant.compat.mmcv.patch import patch_mmcv
from pliant.compat.mmcv.roi_pool import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    deform_roi_pool,
)

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformRoIPoolPack",
    "MultiScaleDeformableAttention",
    "deform_conv2d",
    "deform_roi_pool",
    "modulated_deform_conv2d",
    "patch_mmcv",
    "with_offset_branches",
]
