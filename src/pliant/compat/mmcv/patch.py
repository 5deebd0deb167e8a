"""Run `mmcv.ops` without its compiled extension, or its deformable operators on Pliant's kernels."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pliant import ops
from pliant._after_import import after_import
from pliant._patch import Patch, lasts
from pliant.compat.mmcv.convolution import deform_conv2d, modulated_deform_conv2d
from pliant.compat.mmcv.roi_pool import deform_roi_pool

_EXTENSION = "mmcv._ext"
_replaced: list[tuple[ModuleType, str, Any]] = []  # module, name and the original


class patch_mmcv(Patch):
    """Run the deformable operators of `mmcv.ops` on Pliant's kernels, also where mmcv has no compiled extension.

    mmcv's extension must be compiled for each version of torch, and `mmcv-lite`, the same package without it, cannot
    import `mmcv.ops`. With this patch it can: mmcv's own layers and functions run, with their arguments, registry
    entries (`DCN`, `DCNv2`) and state dicts, and call Pliant's operators for

    - `deform_conv2d` and `modulated_deform_conv2d`,
    - `deform_roi_pool`, by mmcv's rules (no rounding, centred samples),
    - multi-scale deformable attention,

    and torchvision's for `nms` and average `roi_align`. Other compiled operators raise a `NotImplementedError` that
    names them when they are called. Where mmcv's extension is installed, only the deformable operators are replaced.

    Call it before importing code that imports `mmcv.ops`, such as `mmdet.models`, for good or as a context manager.
    Patches may be nested; mmcv's functions return when the last one is undone. `mmcv.ops` of `mmcv-lite` stays
    importable then.

    Raises:
        ImportError: if mmcv is not installed, or has no `mmcv.ops`.

    Examples:
        >>> pliant.patch_mmcv()  # doctest: +SKIP
        >>> model = mmdet.apis.init_detector("vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py")  # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__("mmcv.ops")

    def _install(self) -> None:
        if importlib.util.find_spec("mmcv") is None:
            raise ImportError("patch_mmcv() needs mmcv: pip install mmcv-lite")
        if importlib.util.find_spec("mmcv.ops") is None:
            raise ImportError("patch_mmcv() needs a version of mmcv with mmcv.ops: 2.0 or later")
        if _EXTENSION not in sys.modules and importlib.util.find_spec(_EXTENSION) is None:
            sys.modules[_EXTENSION] = _Extension(_EXTENSION)
        after_import("mmcv.ops", _replace)

    def _remove(self) -> None:
        for module, name, original in _replaced:
            setattr(module, name, original)
        _replaced.clear()


def _replace() -> None:
    """Replace the functions in `mmcv.ops`, and in every module that imported them from there."""
    if not lasts("mmcv.ops") or _replaced:
        return
    for name, (home, replacement) in _REPLACEMENTS.items():
        original = getattr(sys.modules[f"mmcv.ops.{home}"], name)
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and vars(module).get(name) is original:
                _replaced.append((module, name, original))
                setattr(module, name, replacement)


def _attend(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """With the arguments of mmcv's PyTorch implementation."""
    return ops.ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, attention_weights)


def _attend_by_levels(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, im2col_step: int = 64
) -> Tensor:
    """With the arguments of mmcv's autograd function."""
    return ops.ms_deform_attn(value, shapes, starts, locations, weights)


_REPLACEMENTS: dict[str, tuple[str, Any]] = {
    "deform_conv2d": ("deform_conv", deform_conv2d),
    "modulated_deform_conv2d": ("modulated_deform_conv", modulated_deform_conv2d),
    "deform_roi_pool": ("deform_roi_pool", deform_roi_pool),
    "multi_scale_deformable_attn_pytorch": ("multi_scale_deform_attn", _attend),
    "MultiScaleDeformableAttnFunction": ("multi_scale_deform_attn", SimpleNamespace(apply=_attend_by_levels)),
}


class _Extension(ModuleType):
    """Stands in for `mmcv._ext`: what torchvision has too, and functions that say that they are missing."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Pliant's replacement for the compiled extension of mmcv.")
        self.__spec__ = ModuleSpec(name, None)
        self.nms = _nms
        self.roi_align_forward = _roi_align_forward
        self.roi_align_backward = _roi_align_backward
        self.get_compiler_version = self.get_compiling_cuda_version = lambda: "n/a"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(
                f"mmcv's compiled operator {name} is not installed: mmcv-lite has none, and patch_mmcv() replaces only "
                "the deformable operators, nms and average roi_align. Install mmcv with its extension"
            )

        return missing


def _nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    from torchvision.ops import nms

    # With offset 1, coordinates are pixels, and a box ends behind its last one.
    return nms(bboxes + bboxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)  # type: ignore[no-any-return]


def _roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    import torchvision  # noqa: F401  (registers the operator)

    if pool_mode != 1:
        raise NotImplementedError("roi_align with pool_mode='max' is not part of torchvision, only 'avg' is")
    sizes = aligned_height, aligned_width
    output.copy_(torch.ops.torchvision.roi_align(input, rois, spatial_scale, *sizes, sampling_ratio, aligned))


def _roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    sizes = aligned_height, aligned_width, *grad_input.shape
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(grad_output, rois, spatial_scale, *sizes, sampling_ratio, aligned)
    )
