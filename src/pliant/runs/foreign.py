"""What files of other projects hold: their network, the recipe that reproduces it, and the conversion to our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torchvision.datasets import Cityscapes
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from pliant.data import VOC_CLASSES
from pliant.importers import authors, mmdetection
from pliant.importers.mxnet_params import is_params, read_params
from pliant.recipes import find_recipe
from pliant.recipes.base import Recipe

_SCALES = {9: (8, 16, 32), 12: (4, 8, 16, 32)}


class ForeignNetwork(Protocol):
    @property
    def num_classes(self) -> int: ...

    def names(self) -> dict[str, str]: ...

    def shapes(self, state: Mapping[str, Tensor]) -> dict[str, list[int]]: ...


@dataclass(frozen=True)
class Foreign:
    """What a file of another project holds: tensors, network, conversion to ours, recipe and classes."""

    arrays: dict[str, Tensor]
    network: ForeignNetwork
    convert: Callable[[], dict[str, Tensor]]
    name: str
    recipe: Recipe
    classes: tuple[str, ...]


def _authors(source: Path, denormalized: bool | None) -> Foreign:
    arrays, tested = authors.without_test_keys(source, read_params(source))
    network = authors.recognise(source, arrays)
    deformable = "_deform" if network.deform_layers or network.deform_roi else ""
    common: dict[str, Any] = {
        "weights": None,
        "deform_layers": network.deform_layers,
        "offset_groups": network.offset_groups,
        # Their layers with one group of offsets predict them without dilation, those with four with the layer's.
        "offset_dilation": 1 if network.deform_layers and network.offset_groups == 1 else None,
        "image_mean": tuple(level / 255 for level in authors.IMAGE_MEAN),
    }
    recipe: Recipe
    if network.network == "deeplab":
        name = f"{'cityscapes' if network.num_classes == 19 else 'voc'}.deeplab{deformable}_authors"
        recipe = find_recipe(name).replaced(**common)
        classes = {19: _cityscapes(), 21: ("background", *VOC_CLASSES)}.get(network.num_classes, ())
    else:
        if network.anchors not in _SCALES:
            raise ValueError(
                f"{source}: expected 9 or 12 anchors of a cell, as VOC and COCO have, got {network.anchors}"
            )
        name = f"{'coco' if network.anchors == 12 else 'voc'}.{network.network}{deformable}_authors"
        scales, roi = _SCALES[network.anchors], network.deform_roi
        recipe = find_recipe(name).replaced(**common, deform_roi=roi, anchor_scales=scales, bins=network.bins)
        classes = {21: VOC_CLASSES, 81: coco_classes()}.get(network.num_classes, ())
    true_numbers = tested if denormalized is None else denormalized
    return Foreign(arrays, network, lambda: network.convert(arrays, denormalized=true_numbers), name, recipe, classes)


def read_foreign(source: Path, denormalized: bool | None = None) -> Foreign:
    """What a file of the paper's authors or of mmdetection holds.

    Args:
        source: The file.
        denormalized: See `pliant.commands.import_weights.import_weights`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of these, or its numbers are no recipe's.
    """
    try:
        return _authors(source, denormalized) if is_params(source) else _mmdetection(source)
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source} describes a network that cannot be built: {error}") from error


def _mmdetection(source: Path) -> Foreign:
    return from_mmdetection(source, *mmdetection.read_checkpoint(source))


def from_mmdetection(source: Path, arrays: dict[str, Tensor], classes: tuple[str, ...]) -> Foreign:
    """What a checkpoint of mmdetection holds, from its tensors and the names of its classes."""
    network = mmdetection.recognise(source, arrays)
    deformable = "_modulated" if network.modulated else "_deform" if network.deform_stages else ""
    name = f"coco.fpn_faster_rcnn{deformable}"
    recipe = find_recipe(name).replaced(
        backbone=f"timm/resnet{network.depth}",
        frozen=True,
        weights=None,
        deform_stages=network.deform_stages,
        offset_groups=network.offset_groups,
        modulated=network.modulated,
    )
    if not classes and network.num_classes == 81:
        classes = coco_classes()
    return Foreign(arrays, network, lambda: network.convert(arrays), name, recipe, classes)


def coco_classes() -> tuple[str, ...]:
    """COCO's 80 classes in the order of their ids."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


def _cityscapes() -> tuple[str, ...]:
    """Cityscapes' 19 evaluated classes in the order of their training ids."""
    evaluated = [each for each in Cityscapes.classes if not each.ignore_in_eval and each.train_id >= 0]
    return tuple(each.name for each in sorted(evaluated, key=lambda each: each.train_id))
