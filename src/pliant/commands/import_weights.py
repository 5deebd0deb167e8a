"""`pliant import`: convert weights of other projects to files that `predict` and `eval` can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torchvision.datasets import Cityscapes
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from pliant.data import VOC_CLASSES
from pliant.importers import authors, mmdetection
from pliant.importers.mxnet_params import is_params, read_params
from pliant.outputs import Outputs
from pliant.recipes import find_recipe, override
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.tensors import require_fit
from pliant.runs.trained import build_within
from pliant.runs.weights import write_weights
from pliant.tasks.splits import Splits
from pliant.tasks.task import task_of

_SCALES = {9: (8, 16, 32), 12: (4, 8, 16, 32)}


class _Network(Protocol):
    @property
    def num_classes(self) -> int: ...

    def names(self) -> dict[str, str]: ...

    def shapes(self, state: Mapping[str, Tensor]) -> dict[str, list[int]]: ...


@dataclass(frozen=True)
class _Found:
    """What a file of another project holds: tensors, network, conversion to ours, recipe and classes."""

    arrays: dict[str, Tensor]
    network: _Network
    convert: Callable[[], dict[str, Tensor]]
    name: str
    recipe: Recipe
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """What `import_weights` wrote.

    Attributes:
        path: The file.
        name: Name of the recipe by which the network was trained and is used.
        recipe: The recipe with the changes that the file needs.
        classes: As in `pliant.runs.trained.Trained`.
    """

    path: Path
    name: str
    recipe: Recipe
    classes: tuple[str, ...]


def import_weights(
    source: Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    assignments: Sequence[str] = (),
    denormalized: bool | None = None,
) -> Imported:
    """Convert weights of another project, and write them with the recipe that reproduces their results.

    The sources are the paper's authors' MXNet files (`.params`) of R-FCN, Faster R-CNN and DeepLab, and mmdetection's
    checkpoints of Faster R-CNN with a feature pyramid on ResNet-50 or 101, all with or without deformation.

    Args:
        source: The file of the other project.
        out: The file to write; only a file that Pliant wrote is replaced.
        classes: Names of the classes: foreground for detection, all for segmentation. If empty, those in the file are
            used, or COCO's, VOC's or Cityscapes' if their number matches.
        assignments: Changes of the recipe's fields, ``field=value``.
        denormalized: Whether the box layer of the authors' detectors is denormalized, so that its outputs are not in
            units of 0.1 and 0.2. None for True exactly if the file has the layer under ``_test`` names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of these, its tensors do not fit the network (the error lists all missing,
            unknown and misshapen ones), or the number of classes differs. Nothing is written in this case.
    """
    outputs = Outputs.file(out, inputs=[source])
    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such file of weights")
    found = _described(source, denormalized)
    recipe = override(found.recipe, assignments)
    names = _checked_classes(source, found, recipe, tuple(classes))
    model = build_within(source, recipe, names, found.arrays)
    state = model.state_dict()
    require_fit(source, found.arrays, found.network.shapes(state), f"{found.name} with {len(names)} classes")
    lacking = sorted(set(state) - set(found.network.names().values()))
    if lacking:
        raise ValueError(f"{source} lacks the parameters {', '.join(lacking)}, with {', '.join(assignments)}")
    model.load_state_dict(found.convert())
    description = {
        "recipe": found.name,
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": names,
        "splits": Splits(recipe.train_split or "", recipe.val_split, recipe.test_split).names(),
        "step": 0,
        "imported_from": source.name,
    }
    with outputs.writing(out.name) as (place,):
        write_weights(place, model, description)
    return Imported(out, found.name, recipe, names)


def _authors(source: Path, denormalized: bool | None) -> _Found:
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
        classes = {21: VOC_CLASSES, 81: _coco()}.get(network.num_classes, ())
    true_numbers = tested if denormalized is None else denormalized
    return _Found(arrays, network, lambda: network.convert(arrays, denormalized=true_numbers), name, recipe, classes)


def _described(source: Path, denormalized: bool | None) -> _Found:
    """What a file says, whose numbers may be no recipe's."""
    try:
        return _authors(source, denormalized) if is_params(source) else _mmdetection(source)
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source} describes a network that cannot be built: {error}") from error


def _mmdetection(source: Path) -> _Found:
    arrays, classes = mmdetection.read_checkpoint(source)
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
        classes = _coco()
    return _Found(arrays, network, lambda: network.convert(arrays), name, recipe, classes)


def _checked_classes(source: Path, found: _Found, recipe: Recipe, given: tuple[str, ...]) -> tuple[str, ...]:
    names = given or recipe.classes or found.classes
    background = task_of(recipe).background
    expected = found.network.num_classes - (0 if background else 1)
    what = "classes (the background's first, if it has one)" if background else "classes without the background"
    if len(names) != expected:
        came = f"{len(names)}: {', '.join(names)}" if names else "no names"
        raise ValueError(f"{source} has {expected} {what}; name them with --classes a,b,c; got {came}")
    if len(set(names)) != len(names):
        raise ValueError(f"classes must have different names, got {', '.join(names)}")
    return names


def _coco() -> tuple[str, ...]:
    """COCO's 80 classes in the order of their ids."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


def _cityscapes() -> tuple[str, ...]:
    """Cityscapes' 19 evaluated classes in the order of their training ids."""
    evaluated = [each for each in Cityscapes.classes if not each.ignore_in_eval and each.train_id >= 0]
    return tuple(each.name for each in sorted(evaluated, key=lambda each: each.train_id))
