"""Checks that a training with a recipe can start, beyond the ranges of its fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from pliant.backbones.caffe_resnet import DEPTHS
from pliant.backbones.timm_backbone import timm_name
from pliant.recipes.base import PRETRAINED, RANDOM, TIMM, Recipe
from pliant.suggestions import did_you_mean, did_you_mean_path

_PAPERS = (*DEPTHS, "aligned_inception_resnet")
_FILES = ("model.safetensors", "pytorch_model.bin")  # the names in timm's repositories


def require_startable(recipe: Recipe) -> None:
    """Check that a recipe can be trained, before its data is read and anything is written.

    Raises:
        ValueError: If there is no such backbone or accelerator, or a frozen backbone has no weights; the message says
            what to set.
        FileNotFoundError: If the weights are a file or folder that does not exist.
        ConnectionError: If timm's weights are not on this machine, and cannot be downloaded.
    """
    if recipe.backbone not in _PAPERS:
        timm_name(recipe.backbone)
    _require_weights(recipe)
    if recipe.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator must be auto or cpu where torch finds no GPU, got gpu")


def _require_weights(recipe: Recipe) -> None:
    own = timms_form(recipe.backbone)
    if recipe.weights is None and recipe.fixed_norms:
        raise ValueError(
            f"{recipe.backbone} has fixed batch norms and no weights, so it cannot learn. Start from timm's ImageNet "
            f"weights, downloaded at the first use, with --set weights={own}; from a run or a file with --set "
            f"weights=RUN or weights=FILE; or train all of a timm model from random numbers with --set backbone={own} "
            "(frozen=none). --set weights=random starts from random numbers all the same"
        )
    if recipe.weights == PRETRAINED:
        _require_timms_weights(recipe.backbone)
    elif recipe.weights not in (None, RANDOM) and not Path(str(recipe.weights)).exists():
        meant = did_you_mean(str(recipe.weights), (PRETRAINED, RANDOM)) or did_you_mean_path(Path(str(recipe.weights)))
        raise FileNotFoundError(
            f"weights: there is no file {recipe.weights} and no such run folder (nor is it {PRETRAINED}, {RANDOM} or "
            f"timm/NAME){meant}"
        )


def timms_form(backbone: str) -> str:
    """The timm model to suggest in place of a backbone whose weights nobody offers for download."""
    return backbone if backbone.startswith(TIMM) else f"{TIMM}{backbone if backbone in DEPTHS else 'resnet50'}"


def _require_timms_weights(backbone: str) -> None:
    if backbone in _PAPERS:
        raise ValueError(
            f"weights=pretrained are timm's own, and {backbone} is the paper's form, of which timm has none: set "
            f"weights={timms_form(backbone)}, which sets the backbone as well, or weights=FILE"
        )
    place: Any = timm.get_pretrained_cfg(timm_name(backbone))
    if place is None or not place.has_weights:
        raise ValueError(f"timm has no weights of {backbone}: set weights=FILE, or another backbone")
    cached = [try_to_load_from_cache(place.hf_hub_id, name) for name in _FILES] if place.hf_hub_id else []
    if any(isinstance(path, str) for path in cached):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)  # once: a download would retry for a minute
    except Exception as error:  # the session is of requests or httpx
        raise ConnectionError(
            f"timm's weights of {backbone} are not on this machine, and {constants.ENDPOINT} cannot be reached for "
            f"them. Download {place.hf_hub_id or backbone} elsewhere and give its model.safetensors with --set "
            f"weights=FILE --set backbone={backbone}; start from an earlier run with --set weights=RUN; or train all "
            f"of the network from random numbers with --set weights=none --set backbone={backbone}"
        ) from error


def endless_warm_up(recipe: Recipe) -> str | None:
    """A reason why the warm-up never ends, so that the learning rate is not reached; None if it ends."""
    if recipe.warmup_steps < recipe.max_steps:
        return None
    return (
        f"all steps, as warmup_steps={recipe.warmup_steps} is not below max_steps={recipe.max_steps}: the learning "
        f"rate stays at {recipe.scaled_lr * recipe.warmup_factor:g}"
    )
