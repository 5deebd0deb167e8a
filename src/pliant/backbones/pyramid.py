"""Backbones for feature pyramids: four maps of stride 4 to 32, with the last stages deformable."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from pliant import surgery
from pliant.backbones.caffe_resnet import DEPTHS, IMAGE_MEAN, IMAGE_STD, CaffeResNet
from pliant.backbones.timm_backbone import timm_body, undo_zero_init
from pliant.backbones.weights import load_weights

STRIDES = (4, 8, 16, 32)


class CaffePyramid(CaffeResNet):
    """conv2 to conv5 of the paper's ResNets at their own strides. Batch norms are fixed.

    Shape:
        - Input: normalised images `[N, 3, H, W]`
        - Output: maps `"0"` to `"3"`, of strides 4 to 32
    """

    channels = (256, 512, 1024, 2048)
    stages = ("layer1", "layer2", "layer3", "layer4")
    image_mean = IMAGE_MEAN
    image_std = IMAGE_STD

    def __init__(self, depth: int, *, padded_pool: bool = False) -> None:
        super().__init__(depth, frozen=True, padded_pool=padded_pool)
        del self.fc, self.avgpool
        for module in (self.conv1, self.layer1):
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in self.stages:
            x = getattr(self, stage)(x)
            maps.append(x)
        return OrderedDict((str(level), map) for level, map in enumerate(maps))


class TimmPyramid(nn.Module):
    """The maps of stride 4 to 32 of a timm model.

    Args:
        name: a timm model that has these strides.
        weights: see `pliant.backbones.timm_backbone.timm_model`.
        frozen: batch norms with fixed statistics and affine parameters, and no training of the layers up to stride 4.

    Shape:
        - Input: normalised images `[N, 3, H, W]`
        - Output: maps `"0"` to `"3"`, of strides 4 to 32
    """

    def __init__(self, name: str, *, weights: str | Path | None = None, frozen: bool = True) -> None:
        super().__init__()
        body, self.maps = timm_body(name, weights, STRIDES)
        info = body.feature_info
        self.channels = tuple(info.channels()[level] for level in self.maps.levels)
        self.stages = tuple(f"body.{_stage(body, info.module_name()[level], name)}" for level in self.maps.levels)
        config = body.pretrained_cfg
        self.image_mean, self.image_std = tuple(config["mean"]), tuple(config["std"])
        if frozen and weights is None:
            undo_zero_init(body)
        self.body = freeze_batch_norm_2d(body) if frozen else body
        if frozen:
            self._freeze_first_stage()

    def _freeze_first_stage(self) -> None:
        later = tuple(f"{stage.removeprefix('body.')}." for stage in self.stages[1:])
        for name, parameter in self.body.named_parameters():
            if not name.startswith(later):
                parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(level), map) for level, map in enumerate(self.maps.of(self.body, x)))


def _stage(body: nn.Module, module: str, name: str) -> str:
    """The parameter prefix of a stage by the name of its map, which timm flattens or puts below `model`."""
    parameters = [parameter for parameter, _ in body.named_parameters()]
    for stage in (module.replace(".", "_"), module, f"model.{module}"):
        if any(parameter.startswith(f"{stage}.") for parameter in parameters):
            return stage
    raise ValueError(
        f"timm/{name.removeprefix('timm/')} has no separate stage for its map {module}; choose another model"
    )


Pyramid = CaffePyramid | TimmPyramid


def pyramid(
    name: str = "resnet50",
    *,
    weights: str | Path | None = None,
    frozen: bool = True,
    deform_stages: int = 0,
    padded_pool: bool = False,
    offset_groups: int = 1,
    modulated: bool = False,
    border: str = "paper",
) -> Pyramid:
    """A backbone with maps of stride 4 to 32 whose last stages are deformable.

    Args:
        name, weights, frozen, padded_pool: see `pliant.backbones.backbone`.
        deform_stages: number of last stages, 0 to 3, in which all convolutions with a kernel larger than 1 are
            deformable; 3 is conv3 to conv5 as in Zhu et al. (2019).
        offset_groups, modulated, border: see `pliant.nn.DeformConv2d`.

    Raises:
        ValueError: if the backbone does not have these options.
    """
    if not 0 <= deform_stages <= 3:
        raise ValueError(f"deform_stages must be 0 to 3, got {deform_stages}")
    model: Pyramid
    if name in DEPTHS:
        if not frozen:
            raise ValueError(f"{name} has fixed batch norms; frozen=False is for timm models")
        model = CaffePyramid(DEPTHS[name], padded_pool=padded_pool)
    else:
        if padded_pool:
            raise ValueError(f"padded_pool=True is for the paper's ResNets, not for {name}")
        model = TimmPyramid(name, weights=weights, frozen=frozen)
    if deform_stages:
        prefixes = tuple(f"{stage}." for stage in model.stages[len(model.stages) - deform_stages :])
        surgery.deform(
            model,
            lambda name, module: name.startswith(prefixes) and _spatial(module),
            offset_groups=offset_groups,
            modulated=modulated,
            border=border,
        )
    if name in DEPTHS and weights is not None:
        load_weights(model, weights)
    return model


def _spatial(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
