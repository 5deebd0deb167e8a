"""The frame of `tools/peoples_models`, with a miniature model in the place of other people's."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import pliant
from pliant.ops import _native

TOOL = Path(__file__).parents[1] / "tools" / "peoples_models"
NAMES = ("measure", "attention", "convolutions", "mmdet_models")


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the tool, which is imported from its folder as when the tool runs."""
    monkeypatch.syspath_prepend(TOOL)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import measure  # type: ignore[import-not-found]

    return measure  # type: ignore[no-any-return]


class Miniature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(3, 18, 3, padding=1)
        self.conv = torchvision.ops.DeformConv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> dict[str, Any]:
        out = self.norm(self.conv(image, self.offset_conv(image)))
        return {"maps": [out], "count": torch.tensor(len(out)), "loss": out.sin().sum()}


def entry(measure: ModuleType, **changes: Any) -> Any:
    def outputs(model: nn.Module, dtype: torch.dtype) -> Any:
        return model(torch.rand(2, 3, 6, 5, dtype=dtype))["maps"]

    def loss(model: nn.Module, dtype: torch.dtype) -> Tensor:
        return model(torch.rand(2, 3, 6, 5, dtype=dtype))["loss"]

    made = measure.Entry(
        "Miniature", ("torchvision",), "one()", "2×3×6×5", Miniature, outputs, loss, ours=contextlib.nullcontext
    )
    return dataclasses.replace(made, **changes)


@contextlib.contextmanager
def twice_as_much() -> Any:
    def doubled(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * original(*args, **kwargs)

    original = torchvision.ops.deform_conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.ops.deform_conv.deform_conv2d", doubled)
        yield


@pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed")
def test_a_row_has_differences_of_rounding_and_times(measure: ModuleType) -> None:
    row = measure.measure(entry(measure, ours=pliant.patch_torchvision), rounds=1)
    for dtype, least, most in (("float64", 0, 1e-12), ("float32", 1e-9, 1e-4)):
        for what in ("forward", "training step"):
            assert least <= row[dtype][what] <= most
    for times in row["seconds"].values():
        assert set(times) == {"without", "pliant"}
        assert min(times.values()) > 0
    assert row["packages"] == {"torchvision": importlib.metadata.version("torchvision")}
    assert row["baseline"] == "torchvision"
    assert row["kernel_calls"] == ["deform_conv2d"]
    cells = measure.markdown([row]).splitlines()[-1].split(" | ")
    assert len(cells) == len(measure.markdown([row]).splitlines()[0].split(" | "))


def test_what_computes_something_else_shows(measure: ModuleType) -> None:
    row = measure.measure(entry(measure, ours=twice_as_much), rounds=1)
    assert row["float64"]["forward"] == pytest.approx(1, rel=1e-3)  # in evaluation; batch norm hides it in training
    assert row["float32"]["forward"] == pytest.approx(1, rel=1e-3)


def test_both_sides_see_the_same_random_numbers_and_statistics(measure: ModuleType) -> None:
    row = measure.measure(entry(measure), rounds=1)
    assert row["float32"] == row["float64"] == {"forward": 0, "training step": 0}
    assert torch.get_default_dtype() == torch.float32
    assert row["kernel_calls"] == []  # of a line without an effect
    assert "Pliant's kernels were not called" in measure.markdown([row])


def test_absent_packages_and_missing_baselines_are_said(measure: ModuleType) -> None:
    absent = measure.measure(entry(measure, packages=("torchvision", "no-such-package")))
    assert absent["absent"] == "no-such-package"
    alone = measure.measure(entry(measure, theirs=None), rounds=1)
    assert alone["float32"] == {}
    assert [set(times) for times in alone["seconds"].values()] == [{"pliant"}] * 2
    float32 = measure.measure(entry(measure, no_float64="its anchors are float32"), rounds=1)
    assert "float64" not in float32
    lines = measure.markdown([absent, alone, float32]).splitlines()
    assert "`no-such-package` is not installed" in lines[2]
    assert len({line.count(" | ") for line in lines[:1] + lines[2:]}) == 1


def test_the_table_has_one_row_for_each_model(measure: ModuleType) -> None:
    import attention  # type: ignore[import-not-found]
    import convolutions  # type: ignore[import-not-found]
    import mmdet_models  # type: ignore[import-not-found]

    entries = [*convolutions.ENTRIES, *attention.ENTRIES, *mmdet_models.ENTRIES]
    assert len({each.name for each in entries}) == len(entries) > 15


def test_the_page_has_the_rows_that_were_measured(measure: ModuleType) -> None:
    docs = TOOL.parents[1] / "docs"
    rows = json.loads((docs / "results" / "peoples_models.json").read_text())
    assert measure.markdown(rows) in (docs / "your-model.md").read_text()
    assert all(row["kernel_calls"] for row in rows)
