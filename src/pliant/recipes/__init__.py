"""Recipes: what to train, on what, with which schedule.

A recipe is a function that returns a `DetectionRecipe`, a `SegmentationRecipe` or a `ClassificationRecipe`. A variant
calls another, changes fields with `dataclasses.replace` and returns the result.
"""

from __future__ import annotations

import importlib

from pliant.recipes.base import ClassificationRecipe, DetectionRecipe, Recipe, SegmentationRecipe, override
from pliant.suggestions import did_you_mean

__all__ = ["ClassificationRecipe", "DetectionRecipe", "Recipe", "SegmentationRecipe", "find_recipe", "override"]

# All recipes with a short name: the functions of each module of this package.
RECIPES: dict[str, tuple[str, ...]] = {
    "cityscapes": ("deeplab", "deeplab_authors", "deeplab_deform", "deeplab_deform_authors"),
    "coco": (
        "class_aware_rpn",
        "class_aware_rpn_deform",
        "faster_rcnn",
        "faster_rcnn_authors",
        "faster_rcnn_deform",
        "faster_rcnn_deform_authors",
        "fpn_faster_rcnn",
        "fpn_faster_rcnn_deform",
        "fpn_faster_rcnn_modulated",
        "rfcn",
        "rfcn_aligned_inception_resnet",
        "rfcn_authors",
        "rfcn_deform",
        "rfcn_deform_aligned_inception_resnet",
        "rfcn_deform_authors",
    ),
    "imagenet": ("aligned_inception_resnet", "aligned_inception_resnet_deform", "resnet101"),
    "small": ("deeplab", "deeplab_deform", "faster_rcnn", "faster_rcnn_deform"),
    "voc": (
        "class_aware_rpn",
        "class_aware_rpn_deform",
        "deeplab",
        "deeplab_authors",
        "deeplab_deform",
        "deeplab_deform_authors",
        "faster_rcnn",
        "faster_rcnn_authors",
        "faster_rcnn_deform",
        "faster_rcnn_deform_authors",
        "rfcn",
        "rfcn_authors",
        "rfcn_deform",
        "rfcn_deform_authors",
    ),
}


def recipe_names() -> list[str]:
    """The short names of all recipes, such as ``"voc.faster_rcnn"``."""
    return [f"{module}.{function}" for module, functions in RECIPES.items() for function in functions]


def find_recipe(name: str) -> Recipe:
    """Build a recipe by its name.

    Args:
        name: A short name such as ``"voc.faster_rcnn"``, or, for a recipe of your own, a module that Python can import
            and a function in it, such as ``"my_recipes:small_faster_rcnn"``.

    Raises:
        ValueError: If there is no such recipe; the message suggests one and lists the short names.
    """
    module, _, function = name.partition(".")
    if function in RECIPES.get(module, ()):
        found: Recipe = getattr(importlib.import_module(f"pliant.recipes.{module}"), function)()
        return found
    if ":" in name:
        return _own_recipe(name)
    names = recipe_names()
    raise ValueError(f"there is no recipe {name!r}{did_you_mean(name, names) or '.'} Recipes: {', '.join(names)}")


def _own_recipe(name: str) -> Recipe:
    module, _, function = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no recipe {name!r}: {error}") from error
    recipe = build()
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{name} must return a recipe, got {type(recipe).__name__}")
    return recipe
