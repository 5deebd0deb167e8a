"""Detection: boxes with classes and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_dtype

from pliant import models
from pliant.data import COCODetection, DetectionSet, ImageSet, VOCDetection, coco, transforms
from pliant.data.discovery import find_coco, find_labelme, find_tables, find_voc, find_yolo
from pliant.engine.detection import DetectionModule, collate_detection
from pliant.engine.extremes import RankedImage
from pliant.engine.test_time_augmentation import AugmentedDetector, Procedure
from pliant.models.anchors import STRIDE, fitted_scales
from pliant.models.batched import BatchedDetector
from pliant.models.transform import image_transform
from pliant.pictures.results import draw_boxes
from pliant.recipes.base import DetectionRecipe
from pliant.tasks.collation import readable
from pliant.tasks.detection_evidence import detection_evidence
from pliant.tasks.evidence import Evidence
from pliant.tasks.layouts import COCO, LABELME, TABLE, YOLO, Layout, found_only, voc
from pliant.tasks.networks import backbone_options, build_with
from pliant.tasks.places import choose_places
from pliant.tasks.result_files import coco_results, voc_result_names, write_coco_results, write_voc_results
from pliant.tasks.task import Ablation, Agreement, Exportable, Task, View, without_ones

Detections = dict[str, Tensor]

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn": models.faster_rcnn,
    "rfcn": models.rfcn,
    "class_aware_rpn": models.class_aware_rpn,
    "fpn_faster_rcnn": models.fpn_faster_rcnn,
}
_POOLED = ("faster_rcnn", "rfcn")  # the networks of the paper that have RoI pooling
_ON_ONE_MAP = (*_POOLED, "class_aware_rpn")  # the networks whose anchors a recipe can choose
_DEFORMATION = ("deform_layers", "deform_roi", "deform_stages")
_MOST_VIEWED = 50  # most detections in a view
_FEW_CELLS = 2  # an object of fewer cells of the map is small
_COMPARED = 0.05  # lower limit of the score of detections that must agree


def _open_voc(root: Path, split: str, *, training: bool, **options: Any) -> ImageSet:
    return VOCDetection(root, split, require_boxes=training, **options)


def _open_coco(root: Path, split: str, *, training: bool, **options: Any) -> ImageSet:
    return COCODetection.from_folder(root, split, require_boxes=training, **options)


class DetectionTask(Task[DetectionRecipe]):
    """Detectors with torchvision's conventions, on VOC's, COCO's, YOLO's or LabelMe's annotations."""

    recipe = DetectionRecipe
    layouts = {  # noqa: RUF012
        "voc": voc(_open_voc, "Main", find=find_voc, by_purpose=True),
        "coco": Layout(
            _open_coco,
            coco.available_splits,
            COCO,
            "A split is a file such as annotations/instances_train.json, and a folder train with its images",
            title="COCO: annotations/instances_SPLIT.json, with images in SPLIT/",
            images=coco.split_images,
            fits=coco.is_official,
            find=find_coco,
            by_purpose=True,
        ),
        "yolo": found_only("YOLO: text files of boxes beside images", YOLO, find_yolo, by_purpose=True),
        "labelme": found_only("LabelMe: a .json of shapes for each image", LABELME, find_labelme, by_purpose=True),
        "csv": found_only("CSV: a table with a row for each box", TABLE, find_tables, by_purpose=True),
    }
    columns = {  # noqa: RUF012
        key: key for key in ("AP", "AP50", "AP75", "VOC_AP50", "VOC_AP50_11pt", "VOC_AP70", "VOC_AP70_11pt")
    }
    has_boxes = True

    # -- data

    def transforms(self, recipe: DetectionRecipe, *, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
        return transforms.detection_train(recipe.flip) if training else transforms.detection_eval()

    def collate(self, *, training: bool) -> Callable[[list[Any]], Any]:
        return partial(readable, collate_detection)

    def knows_any(self, dataset: ImageSet) -> bool:
        assert isinstance(dataset, DetectionSet)
        return any(len(dataset.target(index)["labels"]) for index in range(len(dataset)))

    def completed(self, recipe: DetectionRecipe, training: ImageSet) -> DetectionRecipe:
        if recipe.anchor_scales is not None or recipe.network not in _ON_ONE_MAP:
            return recipe
        assert isinstance(training, DetectionSet)
        return recipe.replaced(anchor_scales=fitted_scales(*_scaled_boxes(recipe, training)))

    # -- network

    def build(self, recipe: DetectionRecipe, classes: Sequence[str], *, pretrained: bool = True) -> nn.Module:
        if recipe.anchor_scales is None and recipe.network in _ON_ONE_MAP:
            raise ValueError(
                "anchor_scales=none stands for those of the training images' boxes, which are not known here: set "
                "them, such as --set anchor_scales=1,2,4"
            )
        fields = ("deform_roi", "deform_stages", "sampling", "framing", "bins", "hardest", "background_iou")
        options = {
            **backbone_options(recipe, pretrained=pretrained),
            **{name: getattr(recipe, name) for name in (*fields, "anchor_scales")},
            "min_size": recipe.short_side,
            "max_size": recipe.max_side,
            "score_thresh": recipe.score_threshold,
            "nms_thresh": recipe.nms_threshold,
            "detections_per_image": recipe.max_detections,
        }
        needed = (*_DEFORMATION, "offset_dilation", "image_mean", "freeze_below")
        return build_with(_NETWORKS[recipe.network], len(classes) + 1, options, needed=needed)

    def module(self, recipe: DetectionRecipe, model: nn.Module, classes: Sequence[str]) -> DetectionModule:
        return DetectionModule(model, classes=classes, **self.training_options(recipe, model))

    def lr_multipliers(self, recipe: DetectionRecipe) -> dict[str, float]:
        own = without_ones({"*.reduce.*": recipe.reduce_lr_mult})
        # Also if it is 1: `pliant.param_groups` has the paper's 0.01 for this layer.
        return super().lr_multipliers(recipe) | own | {"*.offset_fc.*": recipe.roi_offset_lr_mult}

    def doubts(self, recipe: DetectionRecipe) -> dict[str, str]:
        found = {"anchors": unfitting_anchors(recipe), "objects": small_objects(recipe)}
        return super().doubts(recipe) | {title: doubt for title, doubt in found.items() if doubt is not None}

    def without_deformation(self, recipe: DetectionRecipe) -> DetectionRecipe:
        return recipe.replaced(deform_layers=0, deform_stages=0, deform_roi=False)

    def augmented(self, model: nn.Module, procedure: Procedure) -> nn.Module:
        if not isinstance(model, GeneralizedRCNN):
            raise ValueError("scales, flip, box averaging and soft-NMS need the detector itself, not an exported one")
        return AugmentedDetector(model, procedure)

    # -- one image

    @torch.inference_mode()
    def infer(self, model: nn.Module, image: Tensor, recipe: DetectionRecipe, device: torch.device | str) -> Detections:
        return {key: value.cpu() for key, value in model([_scaled(image).to(device)])[0].items()}

    def draw(self, image: Tensor, found: Detections, classes: Sequence[str], *, threshold: float) -> list[Image.Image]:
        keep = found["scores"] >= threshold
        boxes, labels, scores = (found[key][keep] for key in ("boxes", "labels", "scores"))
        return [draw_boxes(image.as_subclass(Tensor), boxes, labels, classes, scores)]

    def records(
        self, found: Detections, classes: Sequence[str], *, image_id: int, category_ids: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """The detections in COCO's results format, with the names of their classes added."""
        ids = category_ids or range(1, len(classes) + 1)
        names = dict(zip(ids, classes, strict=True))
        results = coco_results(found, image_id, dict(enumerate(ids, start=1)))
        return [{**item, "category": names[item["category_id"]]} for item in results]

    def view(
        self,
        model: nn.Module,
        recipe: DetectionRecipe,
        classes: Sequence[str],
        picture: Tensor,
        *,
        threshold: float,
        device: torch.device | str,
    ) -> View:
        pixels = picture.as_subclass(Tensor)
        found = self.infer(model, pixels, recipe, device)
        keep = found["scores"] >= threshold
        boxes, labels, scores = (found[key][keep][:_MOST_VIEWED] for key in ("boxes", "labels", "scores"))
        covered = np.zeros(pixels.shape[1:], dtype=bool)
        for x0, y0, x1, y1 in boxes.round().int().tolist():
            covered[y0:y1, x0:x1] = True
        objects = [((x1 - x0) * (y1 - y0), ((y0 + y1) / 2, (x0 + x1) / 2)) for x0, y0, x1, y1 in boxes.tolist()]
        names = [classes[label - 1] for label in labels.tolist()]
        places = choose_places(objects, covered)
        return View(pixels, pixels.to(device) / 255, places, boxes, names, scores.tolist())

    def as_input(self, image: Tensor) -> list[Tensor]:
        return [image]

    # -- results

    def result_files(self, dataset: ImageSet, split: str, *, voc: bool) -> list[str]:
        if voc:
            return (
                voc_result_names(dataset.classes)
                if isinstance(dataset, VOCDetection)
                else super().result_files(dataset, split, voc=voc)
            )
        return [f"detections_{split}_pliant_results.json"] if isinstance(dataset, COCODetection) else []

    def write_results(self, places: Sequence[Path], module: Any, dataset: ImageSet) -> None:
        if isinstance(dataset, COCODetection):
            write_coco_results(places[0], module.found.items(), dataset.category_ids)
        elif isinstance(dataset, VOCDetection):
            names = dict(zip(dataset.image_ids, dataset.ids, strict=True))
            write_voc_results(places[0].parent, module.found.items(), names, dataset.classes)

    def evidence(self, module: Any, dataset: ImageSet, tested: Sequence[tuple[int, RankedImage]]) -> Evidence:
        assert isinstance(dataset, DetectionSet)
        return detection_evidence(module, dataset)

    def ablation(self, recipe: DetectionRecipe) -> Ablation | None:
        if recipe.network not in _ON_ONE_MAP:
            return None
        metrics = {"mAP@0.5": "VOC_AP50", "mAP@0.7": "VOC_AP70", "AP": "AP"}
        return Ablation(metrics, "VOC_AP50", pooled=recipe.network in _POOLED)

    # -- export

    def exportable(self, model: nn.Module) -> Exportable:
        assert isinstance(model, GeneralizedRCNN)
        height, width = 150, 215  # not multiples of a stride, and several cells on the coarsest map
        inputs = (torch.rand(2, 3, height, width), torch.tensor([[height, width], [height - 9, width - 5]]))
        return Exportable(BatchedDetector(model), inputs, ("images", "sizes"), ("boxes", "labels", "scores"))

    def from_program(self, program: nn.Module, recipe: DetectionRecipe) -> nn.Module:
        multiple = 1  # the file pads on its own
        mean, std = (0.0,) * 3, (1.0,) * 3
        transform = image_transform(recipe.framing, recipe.short_side, recipe.max_side, mean, std, multiple)
        return ExportedDetector(program, transform)

    def agreement(self, model: nn.Module, other: nn.Module, recipe: DetectionRecipe, image: Tensor) -> Agreement:
        """All detections that score 0.05 or more must have a counterpart of the same class that overlaps by 0.99."""
        ours, theirs = (each([_scaled(image)])[0] for each in (model, other))
        return compare_detections(ours, theirs)


class ExportedDetector(nn.Module):
    """An exported detector, called as torchvision's are: a list of images in 0..1, to a list of dicts."""

    def __init__(self, program: nn.Module, transform: GeneralizedRCNNTransform) -> None:
        super().__init__()
        self.program = program
        self.transform = transform

    def forward(self, images: Sequence[Tensor]) -> list[Detections]:
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


def unfitting_anchors(recipe: DetectionRecipe) -> str | None:
    """A reason why no anchor fits into the images, so that a detector learns from none; None if some anchor fits."""
    if recipe.network not in _ON_ONE_MAP or recipe.anchor_scales is None:
        return None
    side = min(recipe.anchor_scales) * STRIDE
    # At a square anchor's 16 x 16 pixels, the one of ratio 2:1 has 11 x 22, and the one of ratio 1:2 has 23 x 12.
    if side <= recipe.short_side or (side * 11 <= 16 * recipe.short_side and side * 22 <= 16 * recipe.max_side):
        return None
    return (
        f"none fits into an image of short_side={recipe.short_side}, so few or no objects will be found: the smallest "
        f"has {side} pixels (set smaller ones, such as --set anchor_scales=1,2,4)"
    )


def small_objects(recipe: DetectionRecipe) -> str | None:
    """A reason to enlarge the images, if most anchors are hardly larger than a cell of the map; None if they are."""
    if recipe.network not in _ON_ONE_MAP or recipe.anchor_scales is None:
        return None
    middle = sorted(recipe.anchor_scales)[len(recipe.anchor_scales) // 2]
    if middle >= _FEW_CELLS:
        return None
    factor = _FEW_CELLS / middle
    larger = [math.ceil(factor * side / STRIDE) * STRIDE for side in (recipe.short_side, recipe.max_side)]
    return (
        f"the middle anchor has {middle * STRIDE:.0f} pixels, hardly more than a cell of the map ({STRIDE}), so small "
        f"objects will be missed: --set short_side={larger[0]} --set max_side={larger[1]} shows them larger, and "
        f"takes about {factor**2:.1f} times as long"
    )


def _scaled_boxes(recipe: DetectionRecipe, dataset: DetectionSet) -> tuple[Tensor, Tensor]:
    """The boxes [L, 4] to train on, in pixels of the scaled images, and their labels [L]."""
    boxes, labels = [], []
    for index, size in enumerate(dataset.sizes):
        target = dataset.target(index)
        scale = min(recipe.short_side / min(size), recipe.max_side / max(size))
        usable = ~(target["difficult"] | target["iscrowd"])
        boxes.append(target["boxes"].as_subclass(Tensor)[usable] * scale)
        labels.append(target["labels"][usable])
    return torch.cat(boxes), torch.cat(labels)


def compare_detections(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Agreement:
    """Compare two results for one image; see `DetectionTask.agreement`."""
    there, scores, pixels = _counterparts(ours, theirs)
    back, *_ = _counterparts(theirs, ours)
    return Agreement(there and back, scores, int((ours["scores"] >= _COMPARED).sum()), pixels)


def _counterparts(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> tuple[bool, float, float]:
    """Whether each detection that scores well has a counterpart, and the largest differences in score and edge."""
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


def _scaled(image: Tensor) -> Tensor:
    """A uint8 image as float in 0..1."""
    return to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)


TASK = DetectionTask()
