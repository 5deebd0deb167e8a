"""Errors about mistyped names suggest the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pliant.backbones.timm_backbone import timm_name
from pliant.recipes import find_recipe, override
from pliant.runs.folder import RunFolder
from pliant.runs.trained import load_trained
from pliant.suggestions import did_you_mean
from pliant.tasks.startable import require_startable


def test_what_is_alike() -> None:
    known = ("voc.rfcn", "voc.rfcn_deform", "coco.rfcn_deform")
    assert did_you_mean("voc.rfnc_deform", known).startswith("; did you mean 'voc.rfcn_deform'")
    assert did_you_mean("VOC.RFCN", known).startswith("; did you mean 'voc.rfcn'")
    assert did_you_mean("xyz", known) == ""
    assert did_you_mean("rfcn_defrm", known) == "; did you mean 'voc.rfcn_deform' or 'coco.rfcn_deform'?"


@pytest.mark.parametrize(
    ("assignment", "meant"),
    [
        ("max_step=4", "'max_steps'"),
        ("backbones=resnet50", "'backbone'"),
        ("network=rfnc", "'rfcn'"),
        ("precision=32", "'32-true'"),
        ("border=author", "'authors'"),
    ],
)
def test_fields_and_choices(assignment: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean .*{meant}"):
        override(find_recipe("voc.faster_rcnn"), [assignment])


def test_recipes() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'voc\.fasterrcnn'; did you mean 'voc\.faster_rcnn'.* Recipes: "):
        find_recipe("voc.fasterrcnn")
    with pytest.raises(ValueError, match=r"no recipe 'deeplab_deform'; did you mean .*'voc\.deeplab_deform'"):
        find_recipe("deeplab_deform")
    with pytest.raises(ValueError, match=r"no recipe '12345'\. Recipes: "):
        find_recipe("12345")


def test_backbones_are_known_before_any_data_is_read() -> None:
    for name, meant in (("timm/resent50", "timm/resnet50"), ("resnet51", "resnet50"), ("Resnet101", "resnet101")):
        with pytest.raises(ValueError, match=f"did you mean .*'{meant}'"):
            require_startable(override(find_recipe("voc.faster_rcnn"), [f"backbone={name}"]))
    assert timm_name("timm/resnet50.a1_in1k") == "resnet50.a1_in1k"


def test_paths(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "voc.rfcn", {})
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*voc\.rfcn'\?"):
        load_trained(tmp_path / "voc.rfnc")
    with pytest.raises(ValueError, match=r"not a run folder: .*did you mean '.*voc\.rfcn'\?"):
        RunFolder.open(tmp_path / "voc.rfnc")
    for weights, meant in ((tmp_path / "voc.rfnc", "voc.rfcn"), ("pretraind", "'pretrained'")):
        with pytest.raises(FileNotFoundError, match=rf"did you mean '?.*{meant}"):
            require_startable(override(find_recipe("voc.rfcn"), [f"weights={weights}"]))


def test_timms_weights_are_one_setting() -> None:
    chosen = override(find_recipe("voc.rfcn"), ["weights=timm/resnet50"])
    assert (chosen.backbone, chosen.weights, chosen.fixed_norms) == ("timm/resnet50", "pretrained", True)
    assert override(find_recipe("voc.rfcn"), ["weights=timm/resnet50", "backbone=timm/resnet50"]) == chosen
    with pytest.raises(ValueError, match="sets the backbone as well, got backbone=resnet101; leave out one"):
        override(find_recipe("voc.rfcn"), ["weights=timm/resnet50", "backbone=resnet101"])
    with pytest.raises(ValueError, match=r"set weights=timm/resnet101, which sets the backbone as well"):
        require_startable(override(find_recipe("voc.rfcn"), ["weights=pretrained"]))
