"""Every field of every recipe has its range, and no value outside makes a recipe or a network."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from pliant import models
from pliant.engine import Schedule
from pliant.ranges import field_types, read
from pliant.recipes import find_recipe, override, recipe_names
from pliant.tasks.task import build_model, find_task

KINDS = {kind: find_task(kind).recipe for kind in ("detection", "segmentation", "classification")}
WRONG = {
    "deform_layers": (-1,),
    "dilation": (0, -2),
    "offset_groups": (0, -1),
    "offset_dilation": (0, -1),
    "image_mean": ((), (0.5,), (0.5, 0.5), (0.1, 0.2, 255.0), (0.1, 0.2, math.nan), (0.1, -0.2, 0.3)),
    "offset_lr_mult": (-1.0, math.nan, math.inf),
    "bias_lr_mult": (-1.0, math.nan, math.inf),
    "roi_offset_lr_mult": (-1.0, math.nan, math.inf),
    "reduce_lr_mult": (-1.0, math.nan, math.inf),
    "lr": (0.0, -0.1, math.nan, math.inf),
    "lr_batch": (0, -8),
    "batch_size": (0, -8),
    "max_steps": (0, -1, 10**400),
    "momentum": (-0.1, 1.0, 1.5, math.nan),
    "weight_decay": (-1e-4, 2.0, math.nan, math.inf),
    "decay_at": ((0.0,), (1.0,), (0.6, 0.3), (0.5, 0.5), (1.5,), (-0.5,), (math.nan,)),
    "decay": (0.0, -0.1, 1.5, math.nan),
    "warmup_steps": (-1,),
    "warmup_factor": (0.0, -0.1, 1.5, math.nan),
    "clip": (0.0, -1.0, math.nan, math.inf),
    "short_side": (0, -1, 15, 10**9),
    "max_side": (0, -1, 10**9),
    "flip": (-0.5, 1.5, 2.0, math.nan),
    "classes": (("a", "a"), ("",), (" ", "b")),
    "backbone": ("", " "),
    "weights": ("", " "),
    "train_split": ("", " "),
    "test_split": ("", " "),
    "val_split": ("", " "),
    "val_fraction": (-0.1, 0.6, math.nan),
    "test_fraction": (-0.1, 0.6, math.nan),
    "split_seed": (-1, 2**32),
    "mask_values": (("",), ("0:a", "0:a"), ("leaf",), ("leaf:0",), ("0: ",), ("#ff00:a",)),
    "ignored_ids": ((-1,), (3, 3), (2**16,)),
    "seed": (-1, 2**32),
    "workers": (-1, 10**6),
    "checkpoint_every": (0, -1),
    "validate_every": (0, -1),
    "deform_stages": (-1, 4),
    "bins": (0, -1, 1000),
    "background_iou": (-0.1, 0.5, 1.0, math.nan),
    "anchor_scales": ((), (0,), (8, -1), (8, 8)),
    "score_threshold": (-0.1, 1.0, 2.0, math.nan),
    "nms_threshold": (-0.1, 1.5, math.nan),
    "max_detections": (0, -1),
}
CROPS = {"segmentation": ((), (0,), (32, 32, 32), (32, 0), (-1,)), "classification": (0, -1, 15)}
ARGUMENTS = {"score_threshold": "score_thresh", "nms_threshold": "nms_thresh", "max_detections": "detections_per_image"}
SIDES = {"short_side": "min_size", "max_side": "max_size"}


def fields(kind: str) -> Iterator[tuple[str, Any]]:
    """Fields that have more than a few named values, with their types."""
    hints = typing.get_type_hints(KINDS[kind])
    for field in dataclasses.fields(KINDS[kind]):
        kinds = typing.get_args(hints[field.name]) if type(None) in typing.get_args(hints[field.name]) else ()
        named = any(typing.get_origin(kind) is Literal for kind in (hints[field.name], *kinds))
        if hints[field.name] not in (bool, bool | None) and not named:
            yield field.name, hints[field.name]


def wrong(kind: str) -> dict[str, tuple[Any, ...]]:
    own = {"crop": CROPS[kind]} if kind in CROPS else {}
    return {**{name: values for name, values in WRONG.items() if name in dict(fields(kind))}, **own}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_its_range(kind: str) -> None:
    names = [name for name, _ in fields(kind)]
    plain = {float, int, str, float | None, int | None, str | None}
    assert not [name for name in names if field_types(KINDS[kind])[name] in plain]
    assert set(names) == set(wrong(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_out_of_its_range_makes_a_recipe(kind: str) -> None:
    for name, values in wrong(kind).items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} must .*, got "):
                KINDS[kind](**{name: value})


def test_values_from_the_command_line_are_checked_alike() -> None:
    recipe = find_recipe("voc.rfcn_deform")
    for text in ("bins=0", "max_detections=0", "clip=-1", "anchor_scales=", "score_threshold=2", "nms_threshold=-0.1"):
        with pytest.raises(ValueError, match=rf"^{text.split('=')[0]} must .*, got "):
            override(recipe, [text])
    for text in ("momentum=1.5", "flip=nan", "lr=inf", "decay_at=0.6,0.3", "image_mean=1,2,3", "classes=a,a"):
        with pytest.raises(ValueError, match=rf"^{text.split('=')[0]} must .*, got "):
            override(recipe, [text])
    assert override(recipe, ["decay_at="]).decay_at == ()  # the rate never falls


def test_sides_fit_each_other() -> None:
    with pytest.raises(ValueError, match="short_side must be at most max_side, got 700 and 600"):
        override(find_recipe("voc.rfcn"), ["short_side=700", "max_side=600"])
    with pytest.raises(ValueError, match="crop must be at most short_side, got 300 and 256"):
        override(find_recipe("imagenet.resnet101"), ["crop=300"])


@pytest.mark.parametrize("name", ["faster_rcnn", "rfcn", "class_aware_rpn", "fpn_faster_rcnn", "deeplab", "classifier"])
def test_networks_that_are_built_directly_check_their_arguments(name: str) -> None:
    build = getattr(models, name)
    backbone_options = {"dilation", "offset_groups", "offset_dilation", "image_mean"}
    known = set(typing.get_type_hints(build)) | (
        backbone_options if "options" in typing.get_type_hints(build) else set()
    )
    tried = 0
    for field, values in WRONG.items():
        argument = {**ARGUMENTS, **SIDES}.get(field, field)
        for value in values if argument in known - {"backbone", "weights"} else ():
            with pytest.raises(ValueError, match=rf"^{argument} must .*, got "):
                build(3, backbone="timm/resnet10t", **{argument: value})
            tried += 1
    assert tried > 2


def test_the_schedule_checks_alike() -> None:
    with pytest.raises(ValueError, match=r"^momentum must be less than 1, got 1\.5$"):
        Schedule(10, 0.1, momentum=1.5)


def test_a_value_must_be_of_its_type() -> None:
    """Text is read as a number on the command line alone."""
    assert read("lr", "3e-4", float, strict=False) == 3e-4
    assert read("lr", 1, float) == 1.0
    for value, kind in (("3e-4", float), (True, float), (1.0, int), (True, int), ([1], tuple[int, ...]), (1, bool)):
        with pytest.raises(ValueError, match=r"^field must be a valid"):
            read("field", value, kind)


def test_all_recipes_are_within() -> None:
    for name in recipe_names():
        find_recipe(name)  # checks all of them
    assert build_model(override(find_recipe("voc.deeplab"), ["backbone=timm/resnet10t"]), ("a", "b"))
