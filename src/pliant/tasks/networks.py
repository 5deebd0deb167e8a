"""The networks of recipes: functions of `pliant.models`, called with a recipe's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any

from torch import nn

from pliant.backbones import BackboneOptions
from pliant.recipes.base import PRETRAINED, Recipe


def backbone_options(recipe: Recipe, *, pretrained: bool) -> dict[str, Any]:
    """The fields of a recipe that `pliant.backbones.backbone` takes, which have the same names there."""
    options = {name: getattr(recipe, name) for name in ("backbone", "deform_layers", *BackboneOptions.__annotations__)}
    weights = PRETRAINED if pretrained and recipe.weights == PRETRAINED else None
    return {**options, "weights": weights, "frozen": recipe.fixed_norms}


def build_with(
    build: Callable[..., nn.Module], num_classes: int, options: Mapping[str, Any], *, needed: Iterable[str] = ()
) -> nn.Module:
    """Call a function of `pliant.models` with the options that it takes.

    Args:
        build: The function.
        num_classes: The first argument of the function.
        options: The options by name.
        needed: Options that the function must take if they are set.

    Raises:
        ValueError: If an option of `needed` is set and the function does not take it.
    """
    parameters = signature(build).parameters
    taken = set(parameters)
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        taken |= set(BackboneOptions.__annotations__)
    lost = [name for name in needed if options[name] and name not in taken]
    if lost:
        raise ValueError(f"network={build.__name__} has no {', '.join(lost)}")
    return build(num_classes, **{name: value for name, value in options.items() if name in taken})
