"""Detectors of `mmdet`, from its configurations, with mmcv-lite."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from measure import Entry, replaced
from torch import Tensor, nn

import pliant

SIZE = (192, 256)


def _of(config: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import mmdet  # type: ignore[import-not-found]
        from mmdet.registry import MODELS  # type: ignore[import-not-found]
        from mmdet.utils import register_all_modules  # type: ignore[import-not-found]
        from mmengine.config import Config  # type: ignore[import-not-found]

        register_all_modules()
        settings = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / config).model
        settings.backbone.init_cfg = None  # which would load weights
        model: nn.Module = MODELS.build(settings)
        model.init_weights()  # type: ignore[operator]
        if "tood" in config:  # whose loss depends on the epoch, which a hook of mmdet's training writes there
            model.bbox_head.epoch = 0  # type: ignore[union-attr]
        return model

    return build


def _described(dtype: torch.dtype) -> list[Any]:
    """What mmdet is told of an image, with two objects."""
    from mmdet.structures import DetDataSample  # type: ignore[import-not-found]
    from mmengine.structures import InstanceData  # type: ignore[import-not-found]

    keys = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    sample = DetDataSample(metainfo={**dict.fromkeys(keys, SIZE), "scale_factor": (1.0, 1.0)})
    boxes = torch.tensor([[20.0, 30, 120, 140], [50, 60, 200, 180]], dtype=dtype)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 3]))
    return [sample]


def _outputs(model: nn.Module, dtype: torch.dtype) -> Any:
    return model(torch.randn(1, 3, *SIZE, dtype=dtype), _described(dtype), mode="tensor")


def _loss(model: nn.Module, dtype: torch.dtype) -> Tensor:
    losses = model(torch.randn(1, 3, *SIZE, dtype=dtype), _described(dtype), mode="loss")
    return model.parse_losses(losses)[0]  # type: ignore[operator,no-any-return]


@contextlib.contextmanager
def _torchvision_in_mmcv() -> Iterator[None]:
    """mmcv's layers on torchvision's convolution: mmcv-lite has none. Its attention in PyTorch is its own."""
    plain = importlib.import_module("mmcv.ops.deform_conv")
    modulated = importlib.import_module("mmcv.ops.modulated_deform_conv")

    def without_mask(x: Tensor, offset: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        return torchvision.ops.deform_conv2d(x, offset, weight, None, *geometry[:3])

    def with_mask(
        x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any
    ) -> Tensor:
        return torchvision.ops.deform_conv2d(x, offset, weight, bias, *geometry[:3], mask)

    heads = importlib.import_module("mmdet.models.dense_heads.tood_head")  # which calls the function itself
    with contextlib.ExitStack() as stack:
        for holder, name, function in (
            (plain, "deform_conv2d", without_mask),
            (heads, "deform_conv2d", without_mask),
            (modulated, "modulated_deform_conv2d", with_mask),
        ):
            stack.enter_context(replaced(holder, name, function))
        yield


_ROW: dict[str, Any] = {
    "packages": ("mmdet", "mmcv-lite"),
    "line": "pliant.patch_mmcv()",
    "ours": pliant.patch_mmcv,
    "input": "×".join(map(str, (1, 3, *SIZE))),
    "outputs": _outputs,
    "loss": _loss,
}
_CONVOLUTION: dict[str, Any] = {**_ROW, "theirs": _torchvision_in_mmcv}
_ANCHORS: dict[str, Any] = {**_CONVOLUTION, "no_float64": "its anchors are float32"}
_ATTENTION: dict[str, Any] = {**_ROW, "baseline": "mmcv's, by grid_sample"}
_ALONE: dict[str, Any] = {**_ROW, "theirs": None}  # nothing else has a CPU implementation
_FILES = {
    "vfnet": "vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
    "reppoints": "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py",
    "dconv": "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "dpool": "dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py",
    "tood": "tood/tood_r50_fpn_1x_coco.py",
    "dyhead": "dyhead/atss_r50_fpn_dyhead_1x_coco.py",
    "dino": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "deformable_detr": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
}

ENTRIES = [
    Entry("VFNet", build=_of(_FILES["vfnet"]), **_ANCHORS),
    Entry("RepPoints", build=_of(_FILES["reppoints"]), **_ANCHORS),
    Entry("Faster R-CNN, DCN", build=_of(_FILES["dconv"]), **_CONVOLUTION),
    Entry("Faster R-CNN, deformable RoI pooling", build=_of(_FILES["dpool"]), **_ALONE),
    Entry("TOOD", build=_of(_FILES["tood"]), **_ANCHORS),
    Entry("ATSS with DyHead", build=_of(_FILES["dyhead"]), **_ALONE),
    Entry("DINO", build=_of(_FILES["dino"]), **_ATTENTION),
    Entry("Deformable DETR of mmdet", build=_of(_FILES["deformable_detr"]), **_ATTENTION),
]
