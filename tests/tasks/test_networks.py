"""From a recipe to its network and the learning rates of its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pliant import param_groups
from pliant.models import RFCN, ClassAwareRPN, DeepLab, FasterRCNN, FPNFasterRCNN
from pliant.nn import DeformConv2d
from pliant.recipes import find_recipe, override
from pliant.tasks.task import build_model, task_of

CLASSES = ("cat", "dog")


def build(name: str, *changes: str, **fields: Any) -> Any:
    recipe = override(replace(find_recipe(name), weights=None, **fields), changes)
    with torch.device("meta"):
        return recipe, build_model(recipe, CLASSES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("voc.faster_rcnn", FasterRCNN),
        ("voc.rfcn", RFCN),
        ("voc.class_aware_rpn", ClassAwareRPN),
        ("voc.deeplab", DeepLab),
        ("coco.rfcn", RFCN),
    ],
)
def test_names_give_their_networks(name: str, kind: type) -> None:
    assert isinstance(build(name)[1], kind)


def test_the_pyramid_network() -> None:
    recipe = override(find_recipe("coco.fpn_faster_rcnn_modulated"), ["backbone=timm/resnet10t", "weights=none"])
    model = build_model(recipe, CLASSES)
    assert isinstance(model, FPNFasterRCNN)
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    assert layers
    assert all(layer.modulated for layer in layers)


def rates(name: str, *changes: str) -> dict[str, float]:
    """Multiplier of each parameter that trains."""
    recipe, model = build(name, *changes)
    groups = param_groups(model, 1.0, lr_mult=task_of(recipe).training_options(recipe, model)["lr_mult"])
    return {name: group["lr"] for group in groups for name in group["names"]}


def test_rfcn_of_the_authors_has_one_fast_layer() -> None:
    fast = {name: rate for name, rate in rates("voc.rfcn_deform_authors").items() if rate != 1}
    reduce = "roi_heads.box_roi_pool.reduce"
    assert fast == {f"{reduce}.weight": 3.0, f"{reduce}.bias": 3.0}


def test_faster_rcnn_learns_the_offsets_of_bins_slowly() -> None:
    branch = "roi_heads.box_roi_pool.pool.offset_fc"
    for name in ("voc.faster_rcnn_deform", "voc.faster_rcnn_deform_authors"):
        slow = {name: rate for name, rate in rates(name).items() if rate != 1}
        assert slow == {f"{branch}.weight": 0.01, f"{branch}.bias": 0.01}
    for factor in (0.0, 0.5, 1.0, 3.0):
        found = rates("voc.faster_rcnn_deform", f"roi_offset_lr_mult={factor}")
        assert found[f"{branch}.weight"] == found[f"{branch}.bias"] == factor


def test_deeplab_of_the_authors_learns_biases_twice_as_fast() -> None:
    fast = {name for name, rate in rates("voc.deeplab_deform_authors").items() if rate == 2}
    offsets = {f"backbone.layer4.{i}.conv2.offset_conv.bias" for i in range(3)}
    assert fast == {"fc6.bias", "score.bias", *offsets}
    assert set(rates("voc.deeplab_deform").values()) == {1.0}


def test_beta_is_a_field() -> None:
    slow = {name for name, rate in rates("voc.deeplab_deform", "offset_lr_mult=0.1").items() if rate == 0.1}
    assert slow == {f"backbone.layer4.{i}.conv2.offset_conv.{part}" for i in range(3) for part in ("weight", "bias")}


def test_the_authors_deeplab_predicts_offsets_without_dilation() -> None:
    _, model = build("voc.deeplab_deform_authors")
    layer = model.backbone.layer4[0].conv2
    assert (layer.dilation, layer.offset_conv.dilation, layer.offset_conv.padding) == ((2, 2), (1, 1), (1, 1))
    assert layer.border == "authors"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("coco.fpn_faster_rcnn", "deform_layers=3"),
        ("coco.fpn_faster_rcnn", "deform_roi=true"),
        ("voc.rfcn", "deform_stages=3"),
        ("voc.class_aware_rpn", "deform_roi=true"),
    ],
)
def test_a_change_that_the_network_would_not_heed_is_an_error(name: str, change: str) -> None:
    with pytest.raises(ValueError, match=f"network={find_recipe(name).network} has no {change.split('=')[0]}"):
        build(name, change)
