"""The recipe of `multilabel_task.py`; `test_fourth_task.py` runs this file as `pliant/recipes/multilabel.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pliant.recipes import ClassificationRecipe


@dataclass(frozen=True, kw_only=True)
class MultiLabelRecipe(ClassificationRecipe):
    """A classifier with a sigmoid for each class."""

    kind = "multilabel"

    layout: Literal["voc"] = "voc"  # type: ignore[assignment]


def pascal() -> MultiLabelRecipe:
    """ResNet-101 on VOC 2012, evaluated on its validation split."""
    return MultiLabelRecipe(train_split="2012_train", test_split="2012_val", lr=0.01, max_steps=30_000)
