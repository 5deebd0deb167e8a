"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pliant import models
from pliant.data import CityscapesSegmentation, ImageSet, VOCSegmentation, cityscapes, transforms
from pliant.data.discovery import find_coco_outlines, find_labelme_outlines, find_masks, find_yolo_outlines
from pliant.data.mask_values import MaskValues
from pliant.data.sbd import find_sbd
from pliant.engine.extremes import RankedImage
from pliant.engine.segmentation import SegmentationModule, collate_evaluation, collate_training
from pliant.engine.test_time_augmentation import AugmentedSegmenter, Procedure
from pliant.pictures.colours import has_background, mask_colours
from pliant.pictures.results import draw_mask
from pliant.recipes.base import SegmentationRecipe
from pliant.tasks.collation import readable
from pliant.tasks.evidence import Evidence, Pictures, confusion_sections, fitted, galleries, rates
from pliant.tasks.layouts import (
    CITYSCAPES,
    COCO,
    DRAWN,
    LABELME,
    MASKS,
    SBD,
    YOLO,
    Layout,
    found_only,
    voc,
    voc_has,
)
from pliant.tasks.networks import backbone_options, build_with
from pliant.tasks.places import choose_places, pieces
from pliant.tasks.task import Ablation, Agreement, Exportable, Task, View

_OPACITY = 50  # of the inside of an object in a view, out of 255


def _open(reader: Callable[..., ImageSet]) -> Callable[..., ImageSet]:
    return lambda root, split, *, training, **options: reader(root, split, **options)


def _voc_or_sbd(root: Path, split: str) -> bool:
    return find_sbd(root) is not None if split == "sbd" else voc_has("Segmentation", root, split)


class SegmentationTask(Task[SegmentationRecipe]):
    """Segmenters with torchvision's conventions, on VOC's or Cityscapes' layout, or on masks or outlines of objects."""

    recipe = SegmentationRecipe
    layouts = {  # noqa: RUF012
        "voc": voc(_open(VOCSegmentation), "Segmentation", holds=_voc_or_sbd, extra=(("sbd", SBD),)),
        "cityscapes": Layout(
            _open(CityscapesSegmentation),
            cityscapes.available_splits,
            CITYSCAPES,
            "A split is a folder leftImg8bit/train, and a folder gtFine/train",
            title="Cityscapes: leftImg8bit/ and gtFine/",
            images=cityscapes.split_images,
            fits=lambda root: bool(cityscapes.available_splits(root)),
        ),
        "masks": found_only("images with masks of the same names", MASKS, find_masks),
        "coco": found_only("COCO: JSON with polygons or run lengths", COCO + DRAWN, find_coco_outlines),
        "yolo": found_only("YOLO: text files of polygons beside images", YOLO + DRAWN, find_yolo_outlines),
        "labelme": found_only("LabelMe: a .json of shapes for each image", LABELME + DRAWN, find_labelme_outlines),
    }
    columns = {"IoU": "mIoU", "IoU_scaled": "mIoU_scaled"}  # noqa: RUF012
    endings = (".png", ".mask.png")
    recorded = False
    background = True

    # -- data

    def reading(self, recipe: SegmentationRecipe) -> dict[str, Any]:
        if not (recipe.mask_values or recipe.ignored_ids):
            return {}
        return {"values": MaskValues.given(recipe.mask_values, recipe.ignored_ids)}

    def transforms(self, recipe: SegmentationRecipe, *, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
        if training:
            crop = None if recipe.crop is None else (recipe.crop[0], recipe.crop[-1])
            return transforms.segmentation_train(recipe.short_side, recipe.max_side, recipe.flip, crop)
        return OriginalMask(_resize(recipe))

    def collate(self, *, training: bool) -> Callable[[list[Any]], Any]:
        return collate_training if training else partial(readable, collate_evaluation)

    # -- network

    def build(self, recipe: SegmentationRecipe, classes: Sequence[str], *, pretrained: bool = True) -> nn.Module:
        options = {**backbone_options(recipe, pretrained=pretrained), "framing": recipe.framing}
        return build_with(models.deeplab, len(classes), options)

    def module(self, recipe: SegmentationRecipe, model: nn.Module, classes: Sequence[str]) -> SegmentationModule:
        return SegmentationModule(model, classes=classes, **self.training_options(recipe, model))

    def augmented(self, model: nn.Module, procedure: Procedure) -> nn.Module:
        return AugmentedSegmenter(model, procedure)

    # -- one image

    @torch.inference_mode()
    def infer(self, model: nn.Module, image: Tensor, recipe: SegmentationRecipe, device: torch.device | str) -> Tensor:
        """Class ids, uint8 [H, W], at the size of the image."""
        scaled = _resize(recipe)(image).as_subclass(Tensor).to(device)  # float [3, h, w]
        ids = model(scaled[None])["out"][0].argmax(dim=0)  # [h, w]
        full = functional.interpolate(ids[None, None].float(), size=image.shape[-2:], mode="nearest-exact")
        return full[0, 0].to(torch.uint8).cpu()

    def draw(self, image: Tensor, found: Tensor, classes: Sequence[str], *, threshold: float) -> list[Image.Image]:
        """The image with its classes in colour and a legend, and a palette image of their ids."""
        mask = Image.fromarray(np.asarray(found))
        mask.putpalette([value for colour in mask_colours(classes) for value in colour])
        return [draw_mask(image.as_subclass(Tensor), found, classes), mask]

    def view(
        self,
        model: nn.Module,
        recipe: SegmentationRecipe,
        classes: Sequence[str],
        picture: Tensor,
        *,
        threshold: float,
        device: torch.device | str,
    ) -> View:
        image = _resize(recipe)(picture).as_subclass(Tensor)
        ids = self.infer(model, picture, recipe, device)
        of_classes, first = mask_colours(classes), int(has_background(classes))
        colours = torch.tensor(of_classes, dtype=torch.uint8)[ids.long()].permute(2, 0, 1)
        there = [(classes[label], of_classes[label]) for label in ids.unique().tolist() if label >= first]
        near = ids[None].float()
        outline = functional.max_pool2d(near, 3, 1, 1) != -functional.max_pool2d(-near, 3, 1, 1)  # [1, h, w]
        overlay = torch.cat((colours, torch.where(outline, 255, _OPACITY).byte() * (ids >= first)))
        scaled = functional.interpolate(ids[None, None].float(), image.shape[-2:], mode="nearest-exact")[0, 0].numpy()
        places = choose_places(pieces(scaled), scaled > 0)
        return View(picture.as_subclass(Tensor), image.to(device), places, overlay=overlay, colours=there)

    # -- results

    def remarks(self, results: Mapping[str, Any]) -> list[str]:
        accuracy = results.get("pixel_accuracy")
        return [] if accuracy is None else [f"pixel accuracy {100 * accuracy:.1f}" if accuracy == accuracy else ""]

    def evidence(self, module: Any, dataset: ImageSet, tested: Sequence[tuple[int, RankedImage]]) -> Evidence:
        classes = module.metrics.classes

        def example(image: tuple[int, RankedImage]) -> tuple[int, str, Pictures]:
            index, result = image

            def draw(pixels: Tensor, mask: Tensor) -> dict[str, Image.Image]:
                shown, _ = fitted(pixels)
                pairs = {"truth": mask.as_subclass(Tensor), "prediction": result.result}
                return {name: draw_mask(shown, _at(ids, shown), classes) for name, ids in pairs.items()}

            return index, f"mIoU {100 * result.score:.1f}", draw

        rate = rates(module.confusion)
        note = "Pixels at the size of the truth; the colour is the share of the pixels of a class."
        measure = (
            "By the mIoU of each image alone: the mean over the classes that occur in its truth or its prediction. "
            "Classes with few pixels therefore weigh as much as large ones."
        )
        return Evidence(
            {
                "precision": rate["precision"],
                "accuracy": rate["recall"],
                "pixels": module.confusion.sum(dim=1).tolist(),
            },
            "Accuracy is the share of a class's pixels that are found, and precision that of its predictions that are "
            "right.",
            [
                *confusion_sections(module.confusion, classes, classes, note),
                *galleries(tested, dataset, measure, example),
            ],
        )

    def ablation(self, recipe: SegmentationRecipe) -> Ablation:
        return Ablation({"mIoU": "mIoU", "pixel accuracy": "pixel_accuracy"}, "IoU")

    # -- export

    def exportable(self, model: nn.Module) -> Exportable:
        return Exportable(_Scores(model), (torch.rand(2, 3, 150, 215),))

    def from_program(self, program: nn.Module, recipe: SegmentationRecipe) -> nn.Module:
        return ExportedSegmenter(program)

    def agreement(self, model: nn.Module, other: nn.Module, recipe: SegmentationRecipe, image: Tensor) -> Agreement:
        """The best class must be the same in at least 99.9% of the pixels."""
        scaled = _resize(recipe)(image).as_subclass(Tensor)[None]
        ours, theirs = (each(scaled)["out"].softmax(dim=1) for each in (model, other))
        differ = (ours.argmax(dim=1) != theirs.argmax(dim=1)).float().mean().item()
        return Agreement(differ <= 1e-3, (ours - theirs).abs().max().item())


def _at(ids: Tensor, image: Tensor) -> Tensor:
    """Class ids [h, w] at the size of an image [3, H, W]."""
    return functional.interpolate(ids[None, None].float(), image.shape[1:], mode="nearest-exact")[0, 0].long()


class OriginalMask:
    """Transforms only the image; the mask keeps its original size, at which it is evaluated."""

    def __init__(self, transform: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self.transform = transform

    def __call__(self, image: Any, mask: Any) -> tuple[Any, Any]:
        return self.transform(image, mask)[0], mask


class ExportedSegmenter(nn.Module):
    """An exported segmenter, called as torchvision's are."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.program(images)}


class _Scores(nn.Module):
    """A segmenter's scores without the dict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["out"]


def _resize(recipe: SegmentationRecipe) -> Callable[..., Any]:
    return transforms.segmentation_eval(recipe.short_side, recipe.max_side)


TASK = SegmentationTask()
