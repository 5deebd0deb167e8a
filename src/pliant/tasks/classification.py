"""Classification: one class for an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from pliant import models
from pliant.data import ImageFolder, ImageSet, classification, transforms
from pliant.data.discovery import find_folders
from pliant.data.discovery.split_names import split_word
from pliant.engine.classification import ClassificationModule
from pliant.engine.extremes import RankedImage
from pliant.pictures.fonts import names_to_draw
from pliant.pictures.results import draw_classes
from pliant.recipes.base import ClassificationRecipe
from pliant.tasks.collation import readable
from pliant.tasks.evidence import Evidence, Pictures, confusion_sections, galleries, rates
from pliant.tasks.layouts import FOLDERS, Layout
from pliant.tasks.networks import backbone_options, build_with
from pliant.tasks.task import Agreement, Exportable, Task, View

_BEST, _DRAWN = 5, 3  # numbers of classes that are recorded and drawn for an image


def _open_folder(root: Path, split: str, *, training: bool, **options: Any) -> ImageSet:
    return ImageFolder(root, split, **options)


def _fits(root: Path) -> bool:
    """Whether a folder has a folder for each split with images of two classes, and not only one for each class."""
    splits = [name for name in classification.available_splits(root) if split_word(name) is not None]
    return any(classification.has_classes(root, split) for split in splits)


class ClassificationTask(Task[ClassificationRecipe]):
    """Classifiers on images that are sorted into folders."""

    recipe = ClassificationRecipe
    layouts = {  # noqa: RUF012
        "folders": Layout(
            _open_folder,
            classification.available_splits,
            FOLDERS,
            "A split is a folder, such as train, that holds a folder of images for each class",
            title="images in a folder for each class, in a folder for each split",
            images=classification.split_images,
            fits=_fits,
            find=find_folders,
        )
    }
    columns = {"top1": "top1", "top5": "top5"}  # noqa: RUF012
    annotation_files = False

    # -- data

    def transforms(self, recipe: ClassificationRecipe, *, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
        return transforms.classification_train(recipe.crop, recipe.flip) if training else self._resize(recipe)

    def collate(self, *, training: bool) -> Callable[[list[Any]], Any]:
        return partial(readable, default_collate)

    def evaluation_batch(self, recipe: ClassificationRecipe) -> int:
        return recipe.batch_size

    def as_seen(self, recipe: ClassificationRecipe, image: Tensor) -> Tensor:
        """The crop of an image, uint8 [3, H, W], that the network evaluates, float [3, crop, crop]."""
        return self._resize(recipe)(image)

    def _resize(self, recipe: ClassificationRecipe) -> Callable[..., Any]:
        return transforms.classification_eval(recipe.short_side, recipe.max_side, recipe.crop)

    # -- network

    def build(self, recipe: ClassificationRecipe, classes: Sequence[str], *, pretrained: bool = True) -> nn.Module:
        return build_with(models.classifier, len(classes), backbone_options(recipe, pretrained=pretrained))

    def module(self, recipe: ClassificationRecipe, model: nn.Module, classes: Sequence[str]) -> ClassificationModule:
        return ClassificationModule(model, classes=classes, **self.training_options(recipe, model))

    def doubts(self, recipe: ClassificationRecipe) -> dict[str, str]:
        return {}  # a classifier usually starts from random numbers

    # -- one image

    @torch.inference_mode()
    def infer(
        self, model: nn.Module, image: Tensor, recipe: ClassificationRecipe, device: torch.device | str
    ) -> Tensor:
        """Probabilities [C]."""
        return model(self.as_seen(recipe, image)[None].to(device))[0].softmax(dim=0).cpu()

    def draw(self, image: Tensor, found: Tensor, classes: Sequence[str], *, threshold: float) -> list[Image.Image]:
        scores, labels = (values.tolist() for values in found.topk(min(_DRAWN, len(classes))))
        names = names_to_draw(classes)
        best = [(names[label], score) for label, score in zip(labels, scores, strict=True)]
        return [draw_classes(image.as_subclass(Tensor), best)]

    def records(
        self, found: Tensor, classes: Sequence[str], *, image_id: int, category_ids: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """The best classes with their scores."""
        scores, labels = (values.tolist() for values in found.topk(min(_BEST, len(classes))))
        best = [{"category": classes[label], "score": score} for score, label in zip(scores, labels, strict=True)]
        return [{"top5": best}]

    def view(
        self,
        model: nn.Module,
        recipe: ClassificationRecipe,
        classes: Sequence[str],
        picture: Tensor,
        *,
        threshold: float,
        device: torch.device | str,
    ) -> View:
        image = self.as_seen(recipe, picture)
        middle = (image.shape[1] / 2, image.shape[2] / 2)
        return View((image * 255).byte(), image.to(device), [("middle", middle)])

    # -- results

    def evidence(self, module: Any, dataset: ImageSet, tested: Sequence[tuple[int, RankedImage]]) -> Evidence:
        if module.confusion is None:  # a task with other metrics
            return super().evidence(module, dataset, tested)
        classes = module.metrics.classes

        def example(image: tuple[int, RankedImage]) -> tuple[int, str, Pictures]:
            index, result = image

            def draw(pixels: Tensor, label: int) -> dict[str, Image.Image]:
                return {
                    f"prediction; truth: {classes[label]}": self.draw(pixels, result.result, classes, threshold=0)[0]
                }

            return index, f"probability of the right class {100 * result.score:.1f} %", draw

        rate = rates(module.confusion)
        measure = "By the probability of the right class."
        return Evidence(
            {"precision": rate["precision"], "F1": rate["F1"], "images": module.confusion.sum(dim=1).tolist()},
            "Precision is the share of the images given this class that have it.",
            [
                *confusion_sections(module.confusion, classes, classes, "Images."),
                *galleries(tested, dataset, measure, example),
            ],
        )

    # -- export

    def exportable(self, model: nn.Module) -> Exportable:
        return Exportable(model, (torch.rand(2, 3, 150, 215),))

    def from_program(self, program: nn.Module, recipe: ClassificationRecipe) -> nn.Module:
        return program

    def agreement(self, model: nn.Module, other: nn.Module, recipe: ClassificationRecipe, image: Tensor) -> Agreement:
        """The best class must be the same."""
        ours, theirs = (self.infer(each, image, recipe, "cpu") for each in (model, other))
        return Agreement(bool(ours.argmax() == theirs.argmax()), (ours - theirs).abs().max().item())


TASK = ClassificationTask()
