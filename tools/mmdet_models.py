"""Detectors of mmdet on `pliant.patch_mmcv()`, unchanged and with random weights, beside what runs without it.

    pip install mmcv-lite==2.1.0 mmengine mmdet==3.3.0 && python tools/mmdet_models.py

Without Pliant, `mmcv-lite` has no deformable convolution: there mmcv's layers call torchvision's operator. Attention is
mmcv's own implementation in PyTorch. One thread; calls are interleaved, and the least time of each counts.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from third_party import timed
from torch import Tensor, nn

import pliant

CONFIGS = {
    "VFNet": "vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
    "RepPoints": "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py",
    "Faster R-CNN, DCN": "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
}
SIZE = (256, 320)


def built(config: str) -> nn.Module:
    """A detector of one of mmdet's files, with offsets drawn at random."""
    import mmdet  # type: ignore[import-not-found]
    from mmdet.registry import MODELS  # type: ignore[import-not-found]
    from mmengine.config import Config  # type: ignore[import-not-found]

    settings = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / config).model
    settings.backbone.init_cfg = None  # which would load weights
    torch.manual_seed(0)
    model: nn.Module = MODELS.build(settings).eval()
    for name, parameter in model.named_parameters():
        if "conv_offset.weight" in name:
            nn.init.normal_(parameter, std=0.01)
    return model


def sample() -> Any:
    """An image's description, with two objects."""
    from mmdet.structures import DetDataSample  # type: ignore[import-not-found]
    from mmengine.structures import InstanceData  # type: ignore[import-not-found]

    keys = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    described = DetDataSample(metainfo={**dict.fromkeys(keys, SIZE), "scale_factor": (1.0, 1.0)})
    boxes = torch.tensor([[20.0, 30, 120, 140], [50, 60, 200, 180]])
    described.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 3]))
    return described


def flat(found: Any) -> list[Tensor]:
    """The tensors of nested results."""
    if isinstance(found, Tensor):
        return [found.flatten()] if found.is_floating_point() else []
    if isinstance(found, dict):
        found = list(found.values())
    return [part for each in found for part in flat(each)] if isinstance(found, (list, tuple)) else []


@contextlib.contextmanager
def without_pliant() -> Iterator[None]:
    """Run torchvision's convolution, and mmcv's own attention."""
    from mmcv.ops import multi_scale_deform_attn as module  # type: ignore[import-not-found]

    from pliant.compat.mmcv import convolution, patch

    def convolve(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        return torchvision.ops.deform_conv2d(input, offset, weight, bias, *rest)

    name = "multi_scale_deformable_attn_pytorch"
    original = next(original for holder, key, original in patch._replaced if (holder, key) == (module, name))
    with mock.patch.object(convolution.ops, "deform_conv2d", convolve), mock.patch.object(module, name, original):
        yield


def main(rounds: int = 3) -> None:
    """Print the time and the difference of each detector, forward and in training."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pliant.patch_mmcv()
    from mmdet.utils import register_all_modules  # type: ignore[import-not-found]

    register_all_modules()
    for name, config in CONFIGS.items():
        model, image = built(config), torch.randn(1, 3, *SIZE)
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def forward(model: nn.Module = model, image: Tensor = image) -> Tensor:
            with torch.no_grad():
                return torch.cat(flat(model(image, [sample()], mode="tensor")))

        def train(model: nn.Module = model, image: Tensor = image, wanted: list[Tensor] = wanted) -> Tensor:
            torch.manual_seed(1)  # for dropout, and the noise of DINO's queries
            model.train()
            loss = model.parse_losses(model(image, [sample()], mode="loss"))[0]  # type: ignore[operator]
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            return torch.cat([each.flatten() for each in found if each is not None])

        for what, run in (("forward", forward), ("training step", train)):
            ours = run()
            with without_pliant():
                theirs = run()
            difference = float((ours - theirs).norm() / theirs.norm())
            times = []
            for _ in range(rounds):
                mine = timed(run)
                with without_pliant():
                    times.append((mine, timed(run)))
            least, plain = (min(column) for column in zip(*times, strict=True))
            print(f"{name}, {what}: {plain:.2f} s without, {least:.2f} s with Pliant, ratio {plain / least:.1f}, "
                  f"difference {difference:.0e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
