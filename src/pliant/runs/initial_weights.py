"""The weights that a training starts from: a run, a file of Pliant's, or one of another project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from pliant.backbones.input_scale import trained_on_levels
from pliant.backbones.weights import as_float
from pliant.importers import mmdetection
from pliant.importers.mxnet_params import is_params
from pliant.recipes.base import PRETRAINED, RANDOM, Recipe, to_fields
from pliant.runs.foreign import Foreign, from_mmdetection, read_foreign
from pliant.runs.tensors import read_safetensors
from pliant.runs.trained import load_trained

_MMDETECTION = ("neck.fpn_convs.0.conv.weight", "roi_head.bbox_head.fc_cls.weight")
_TORCHVISION = (  # names of its Faster R-CNN with a feature pyramid, which are ours but for the backbone's
    "backbone.fpn.inner_blocks.0.0.bias",
    "rpn.head.conv.0.0.weight",
    "roi_heads.box_head.fc6.weight",
    "roi_heads.box_predictor.cls_score.weight",
)
_PYRAMID = "detection.fpn_faster_rcnn"


@dataclass(frozen=True)
class InitialWeights:
    """The content of a source of weights.

    Attributes:
        path: The file or the run folder.
        what: What it is, in a few words.
        tensors: The tensors by name, as float32.
        network: The network of a recipe (see `network_of`) whose names the tensors have; None for a file that is used
            for its backbone only.
        classes: Names of its classes; None if they are unknown.
        backbone: Name of its backbone in a recipe; None if it is unknown.
        fields: The fields of its recipe; empty if it has none.
    """

    path: Path
    what: str
    tensors: dict[str, Tensor]
    network: str | None = None
    classes: tuple[str, ...] | None = None
    backbone: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def network_of(recipe: Recipe) -> str:
    """The network of a recipe, by the name of its task and, for a detector, its own."""
    return f"{recipe.kind}.{getattr(recipe, 'network', '')}"


def read_initial(recipe: Recipe) -> InitialWeights | None:
    """Read what a recipe's `weights` name; None if that is no file.

    A run folder gives its best weights. Files are those that `pliant train` and `pliant import-weights` wrote, of
    mmdetection and of the paper's authors in MXNet, and tensors by name in safetensors or a `.pth`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or none of these.
    """
    if recipe.weights in (None, PRETRAINED, RANDOM):
        return None
    path = Path(str(recipe.weights))
    if path.suffix == ".onnx":
        raise ValueError(f"weights: {path} is an exported network, which cannot be trained; give the run it came from")
    if path.is_dir() and not (path / "recipe.json").is_file():
        if not (path / "model.safetensors").is_file():
            raise ValueError(
                f"weights: {path} is neither a run folder, which has a recipe.json, nor one of save_pretrained, which "
                "has a model.safetensors"
            )
        path = path / "model.safetensors"
    if path.is_dir() or _is_ours(path):
        return _trained(path)
    if path.is_file() and is_params(path):
        return _foreign(path, "the authors' MXNet file", read_foreign(path))
    return _tensors(path)


def _is_ours(path: Path) -> bool:
    if path.suffix == ".ckpt":
        return path.with_suffix(".safetensors").is_file()
    return path.suffix == ".safetensors" and "pliant" in read_safetensors(path)[1]


def _trained(path: Path) -> InitialWeights:
    trained = load_trained(path)
    said = f"{trained.name}, step {trained.step}" if trained.step else f"{trained.name}, imported"
    return InitialWeights(
        trained.path,
        said,
        as_float(trained.state),
        network_of(trained.recipe),
        trained.classes,
        trained.recipe.backbone,
        to_fields(trained.recipe),
    )


def _foreign(path: Path, what: str, found: Foreign) -> InitialWeights:
    missing = [name for name in found.network.names() if name not in found.arrays]
    if missing:
        raise ValueError(f"{path} is {what} of {found.name} and lacks {', '.join(missing[:8])}")
    recipe = found.recipe
    return InitialWeights(
        path,
        f"{what} of {found.name}",
        as_float(found.convert()),
        network_of(recipe),
        found.classes or None,
        recipe.backbone,
        to_fields(recipe),
    )


def _tensors(path: Path) -> InitialWeights:
    arrays, classes = mmdetection.read_checkpoint(path)
    if set(_MMDETECTION) <= set(arrays):
        return _foreign(path, "mmdetection's checkpoint", from_mmdetection(path, arrays, classes))
    if any(name.startswith("neck.") for name in arrays) and trained_on_levels(
        arrays.get("backbone.conv1.weight"), arrays.get("backbone.bn1.running_var")
    ):
        raise ValueError(
            f"{path} is a detector of mmdetection on a ResNet in Caffe's style, whose images are BGR; expected one in "
            "PyTorch's style"
        )
    tensors = as_float(arrays)
    if set(_TORCHVISION) <= set(tensors):
        return InitialWeights(path, "torchvision's Faster R-CNN", tensors, _PYRAMID, _torchvision_classes(tensors))
    return InitialWeights(path, "a file of tensors", tensors)


def _torchvision_classes(tensors: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    names: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    scores = tensors["roi_heads.box_predictor.cls_score.weight"]
    return tuple(names[1:]) if len(scores) == len(names) else None
