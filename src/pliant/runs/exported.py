"""Trained networks as ONNX files: written, compared with the network, and opened again in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_dtype

from pliant.data import transforms
from pliant.export import OnnxModule, to_onnx
from pliant.models.batched import BatchedDetector
from pliant.models.transform import image_transform
from pliant.recipes.base import ClassificationRecipe, DetectionRecipe, Recipe, SegmentationRecipe, kind_of, to_fields
from pliant.runs.trained import Trained, described, load_trained

_KEY = "pliant"


@dataclass(frozen=True)
class Agreement:
    """How far an exported file is from its network on one image.

    Attributes:
        image: Its name.
        same: Whether every detection of either with a score of 0.05 or more has its like in the other, of the same
            label and overlapping by 0.99 or more; or the best class is the same, of the image or of all pixels but one
            in a thousand.
        detections: How many detections of the network were compared; None but for detection.
        scores: The largest difference of scores (probabilities for classes).
        pixels: The largest distance of a box's edge, in pixels of the image; None but for detection.
    """

    image: str
    same: bool
    detections: int | None
    scores: float
    pixels: float | None


class ExportedDetector(nn.Module):
    """An exported detector, called as torchvision's are: a list of images in 0..1, to a list of dicts."""

    def __init__(self, program: nn.Module, transform: GeneralizedRCNNTransform) -> None:
        super().__init__()
        self.program = program
        self.transform = transform

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        scaled = [self.transform.resize(image)[0] for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in scaled]
        batch = self.transform.batch_images(scaled, size_divisible=1)
        boxes, labels, scores = self.program(batch, torch.tensor(sizes))
        found = [
            {"boxes": box[label > 0], "labels": label[label > 0], "scores": score[label > 0]}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
        originals = [(image.shape[-2], image.shape[-1]) for image in images]
        return self.transform.postprocess(found, sizes, originals)


class ExportedSegmenter(nn.Module):
    """An exported segmenter, called as torchvision's are."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.program(images)}


@dataclass(frozen=True)
class Exported(Trained):
    """A trained network in an ONNX file.

    Attributes:
        runtime: What runs it.
    """

    runtime: str = "onnxruntime"

    def model(self) -> nn.Module:
        """What stands for the network.

        Raises:
            ImportError: If the runtime is not installed.
        """
        return _module(OnnxModule(self.path, self.runtime), self.recipe).eval()


class _Scores(nn.Module):
    """A segmenter's scores without the dict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["out"]


def write_exported(source: Path, out: Path, *, opset: int = 19) -> Trained:
    """Write a trained network as an ONNX file of standard operators, for any batch and image size.

    A detector takes ``images`` float [N, 3, H, W] in 0..1, already scaled, smaller ones at the top left, and ``sizes``
    int64 [N, 2], and gives ``boxes`` [N, D, 4] in pixels, ``labels`` [N, D] (0 for nothing) and ``scores`` [N, D]. A
    segmenter gives ``scores`` [N, C, H, W] of ``images``, a classifier ``scores`` [N, C]. Recipe and classes are in
    the file, so that ``pliant predict`` and ``eval`` take it in place of the weights.

    Args:
        source: A run folder or a file of weights that `train` wrote.
        out: The file, ``.onnx``.
        opset: 19 or 22.

    Raises:
        ImportError: If onnx or onnxscript are not installed.
        FileNotFoundError: If there are no such weights.
        ValueError: If they cannot be used, or the name or opset is not possible.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"the file must end in .onnx, got {out}")
    trained = load_trained(source)
    model = trained.model()
    height, width = 150, 215  # no multiples of a stride, and some cells on the coarsest map
    images = torch.rand(2, 3, height, width)
    inputs: tuple[Tensor, ...] = (images,)
    names, outputs = ["images"], ["scores"]
    if isinstance(model, GeneralizedRCNN):
        inputs = (images, torch.tensor([[height, width], [height - 9, width - 5]]))
        names, outputs = ["images", "sizes"], ["boxes", "labels", "scores"]
        model = BatchedDetector(model)
    elif isinstance(trained.recipe, SegmentationRecipe):
        model = _Scores(model)
    description = {
        "recipe": trained.name,
        "kind": kind_of(trained.recipe),
        "fields": to_fields(trained.recipe),
        "classes": trained.classes,
        "category_ids": trained.category_ids,
        "splits": {"test": trained.test_split},
        "step": trained.step,
    }
    metadata = {_KEY: json.dumps(description, ensure_ascii=False), "classes": json.dumps(trained.classes)}
    to_onnx(model.eval(), inputs, out, opset=opset, input_names=names, output_names=outputs, metadata=metadata)
    return trained


def load_exported(path: Path, runtime: str = "onnxruntime") -> Exported:
    """Open what `write_exported` wrote.

    Raises:
        ImportError: If the runtime is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file.
    """
    told = OnnxModule(path, runtime).metadata
    if _KEY not in told:
        raise ValueError(f"{path} does not say what it was trained for: use a file that `pliant export` wrote")
    try:
        description: dict[str, Any] = json.loads(told[_KEY])
    except ValueError as error:
        raise ValueError(f"{path}: the description of the recipe in it is not JSON: {error}") from error
    fields = described(path, description)
    return Exported(path=path, folder=path.parent, data=None, state={}, runtime=runtime, **fields)


def open_trained(source: Path) -> Trained:
    """Read a run folder, a file of weights or an exported ``.onnx``.

    Raises:
        As `load_trained` and `load_exported`.
    """
    return load_exported(source) if source.suffix == ".onnx" else load_trained(source)


@torch.inference_mode()
def compare(trained: Trained, exported: Exported, images: Mapping[str, Tensor]) -> list[Agreement]:
    """Run network and exported file on images, uint8 [3, H, W] by name."""
    model, other = trained.model(), exported.model()
    return [_agreement(name, model, other, trained.recipe, image) for name, image in images.items()]


def _module(program: OnnxModule, recipe: Recipe) -> nn.Module:
    if isinstance(recipe, SegmentationRecipe):
        return ExportedSegmenter(program)
    if isinstance(recipe, ClassificationRecipe):
        return program
    multiple = 1  # the file pads on its own
    return ExportedDetector(
        program, image_transform(recipe.framing, recipe.short_side, recipe.max_side, (0,) * 3, (1,) * 3, multiple)
    )


def _agreement(name: str, model: nn.Module, other: nn.Module, recipe: Recipe, image: Tensor) -> Agreement:
    if isinstance(recipe, DetectionRecipe):
        scaled = to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        return _same_detections(name, model([scaled])[0], other([scaled])[0])
    if isinstance(recipe, SegmentationRecipe):
        cut = transforms.segmentation_eval(recipe.short_side, recipe.max_side)
        ours, theirs = (each(cut(image).as_subclass(Tensor)[None])["out"].softmax(dim=1) for each in (model, other))
        differ = (ours.argmax(dim=1) != theirs.argmax(dim=1)).float().mean().item()
        return Agreement(name, differ <= 1e-3, None, (ours - theirs).abs().max().item(), None)
    if not isinstance(recipe, ClassificationRecipe):
        raise TypeError(f"no such kind of recipe: {type(recipe).__name__}")
    cut = transforms.classification_eval(recipe.short_side, recipe.max_side, recipe.crop)
    ours, theirs = (each(cut(image)[None]).softmax(dim=1) for each in (model, other))
    return Agreement(name, bool(ours.argmax() == theirs.argmax()), None, (ours - theirs).abs().max().item(), None)


def _same_detections(name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Agreement:
    there, scores, pixels = _likes(ours, theirs)
    back, *_ = _likes(theirs, ours)
    return Agreement(name, there and back, int((ours["scores"] >= _COMPARED).sum()), scores, pixels)


def _likes(some: dict[str, Tensor], others: dict[str, Tensor]) -> tuple[bool, float, float]:
    """Whether all that score well have their like among the others, and the largest differences to them."""
    well = some["scores"] >= _COMPARED
    if not well.any() or not len(others["scores"]):
        return not well.any(), 0.0, 0.0
    overlap = box_iou(some["boxes"][well], others["boxes"])
    apart = (some["scores"][well, None] - others["scores"]).abs()
    likeness = torch.where(some["labels"][well, None] == others["labels"], overlap - apart, -1.0)
    which = likeness.argmax(dim=1)
    line = torch.arange(len(which))
    same = (overlap[line, which] >= 0.99) & (likeness[line, which] >= 0)
    pixels = (some["boxes"][well] - others["boxes"][which]).abs().max()
    return bool(same.all()), float(apart[line, which].max()), float(pixels)


_COMPARED = 0.05
