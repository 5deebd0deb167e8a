"""Files of weights whose description, or names that it gives, want to do harm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.bounded import memory_limit
from importers.mxnet_file import params_bytes
from torch import nn

from pliant.commands.import_weights import import_weights
from pliant.data import VOC_CLASSES
from pliant.recipes import find_recipe
from pliant.recipes.base import to_fields
from pliant.runs.trained import load_trained
from pliant.runs.weights import write_weights
from pliant.tasks.result_files import write_voc_results


def written(path: Path, name: str, classes: list[str], **fields: Any) -> Path:
    """A file of one small tensor that says it is a recipe's network."""
    recipe = dataclasses.replace(find_recipe(name), weights=None)
    description = {
        "recipe": name,
        "kind": recipe.kind,
        "fields": {**to_fields(recipe), **fields},
        "classes": classes,
        "step": 1,
        "splits": {"test": None},
    }
    write_weights(path, nn.Linear(2, 3), description)
    return path


@pytest.mark.parametrize(
    ("name", "classes", "fields"),
    [
        ("voc.rfcn", ["a", "b"], {"bins": 700}),
        ("voc.rfcn", ["a", "b"], {"bins": 2**40}),
        ("voc.faster_rcnn", [str(number) for number in range(200_000)], {}),
        ("voc.faster_rcnn", ["a"], {"anchor_scales": list(range(1, 400_000))}),
        ("voc.deeplab", [str(number) for number in range(200_000)], {}),
    ],
)
def test_a_description_of_a_huge_network_is_refused(
    tmp_path: Path, name: str, classes: list[str], fields: dict[str, Any]
) -> None:
    path = written(tmp_path / "hostile.safetensors", name, classes, **fields)
    with memory_limit(1500), pytest.raises(ValueError, match=r"hostile\.safetensors"):
        load_trained(path).model()


def test_arrays_without_numbers_do_not_make_a_huge_network(tmp_path: Path) -> None:
    shapes = {"rfcn_cls": 21 * 2**20, "rfcn_bbox": 8 * 2**20, "rpn_cls_score": 18}
    arrays = {f"arg:{name}_weight": np.zeros((outputs, 0), "float32") for name, outputs in shapes.items()}
    (tmp_path / "hostile.params").write_bytes(params_bytes(arrays))
    with memory_limit(1500), pytest.raises(ValueError, match=r"hostile\.params describes a network that cannot be"):
        import_weights(tmp_path / "hostile.params", tmp_path / "out.safetensors", classes=VOC_CLASSES[:20])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["a/b", "../../a", "/etc/passwd"])
def test_results_of_classes_named_as_paths_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    found = {"boxes": torch.ones(1, 4), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    (path,) = write_voc_results(tmp_path / "out", [(0, found)], {0: "000001"}, [name])
    assert path.parent == tmp_path / "out"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
