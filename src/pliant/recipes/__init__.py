"""Recipes: what to train, on what, with which schedule; and the procedures that train, evaluate and predict.

A recipe is a function that returns a `DetectionRecipe`, a `SegmentationRecipe` or a `ClassificationRecipe`. A variant
calls another, changes fields with `dataclasses.replace` and returns the result.
"""

from pliant.recipes.base import (
    ClassificationRecipe,
    DetectionRecipe,
    Recipe,
    SegmentationRecipe,
    find_recipe,
    override,
)

__all__ = ["ClassificationRecipe", "DetectionRecipe", "Recipe", "SegmentationRecipe", "find_recipe", "override"]
