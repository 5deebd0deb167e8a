"""`patch_attention` on a package with the forms in which others write this attention."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import pliant
from pliant import _patch, attention_patch
from pliant.ops import _native

pytestmark = pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed")

PACKAGE = '''
import torch
import torch.nn.functional as F

CALLS = []


def sums(maps, shapes, locations, weights, heads, **options):
    """From maps `[N * M, D, S]` of each level."""
    CALLS.append("theirs")
    found = []
    for level, (height, width) in enumerate(shapes):
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        plane = maps[level].reshape(*maps[level].shape[:2], int(height), int(width))
        found.append(F.grid_sample(plane, grid, align_corners=options.get("align_corners", False)))
    factors = weights.flatten(3).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    out = (torch.cat(found, -1) * factors).sum(-1)
    return out.view(-1, heads * out.shape[1], out.shape[2]).transpose(1, 2)


def split(value, shapes):
    return value.split([int(height) * int(width) for height, width in shapes], -1)


def rows(value, value_spatial_shapes, sampling_locations, attention_weights):
    assert value.shape[1] == sum(int(height) * int(width) for height, width in value_spatial_shapes)
    maps = split(value.permute(0, 2, 3, 1).flatten(0, 1), value_spatial_shapes)
    return sums(maps, value_spatial_shapes, sampling_locations, attention_weights, value.shape[2])


def columns(value, value_spatial_shapes, sampling_locations, attention_weights, value_spatial_shapes_hw=None):
    maps = split(value.view(-1, *value.shape[2:]), value_spatial_shapes_hw or value_spatial_shapes)
    return sums(maps, value_spatial_shapes, sampling_locations, attention_weights, value.shape[1])


def maps(value, value_spatial_shapes, sampling_locations, attention_weights):
    merged = [each.flatten(0, 1) for each in value]
    return sums(merged, value_spatial_shapes, sampling_locations, attention_weights, value[0].shape[1])


def planes(value, value_spatial_shapes, sampling_locations, attention_weights):
    heads = sampling_locations.shape[2]
    assert value[0].dim() == 4
    return sums([each.flatten(2) for each in value], value_spatial_shapes, sampling_locations, attention_weights, heads)


def points_in_one_axis(
    value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"
):
    if method != "default":
        CALLS.append("theirs")
        return torch.zeros(())
    CALLS.append("theirs")
    maps = split(value.permute(0, 2, 3, 1).flatten(0, 1), value_spatial_shapes)
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1).split(num_points_list, -2)
    found = [
        F.grid_sample(map.unflatten(-1, tuple(shape)), grid, align_corners=False)
        for map, grid, shape in zip(maps, grids, value_spatial_shapes)
    ]
    factors = attention_weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
    out = (torch.cat(found, -1) * factors).sum(-1)
    return out.view(len(value), -1, out.shape[2]).transpose(1, 2)


class Attention(torch.nn.Module):
    def forward(self, value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step):
        return rows(value, spatial_shapes, sampling_locations, attention_weights)


def corners(value, value_spatial_shapes, sampling_locations, attention_weights):
    maps = split(value.permute(0, 2, 3, 1).flatten(0, 1), value_spatial_shapes)
    heads = value.shape[2]
    return sums(maps, value_spatial_shapes, sampling_locations, attention_weights, heads, align_corners=True)


def scaled(value, value_spatial_shapes, sampling_locations, attention_weights, scale):
    return scale * rows(value, value_spatial_shapes, sampling_locations, attention_weights)


def accelerated(value, spatial_shapes, sampling_locations, attention_weights):
    return None
'''


@pytest.fixture
def borrowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package, of which a module `core` has the functions and `layers` imports one."""
    folder = tmp_path / "borrowed_attention"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "core.py").write_text(PACKAGE)
    (folder / "layers.py").write_text("from borrowed_attention.core import rows as rows\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("borrowed_attention")
    for name in [name for name in sys.modules if name.startswith("borrowed_attention")]:
        del sys.modules[name]
    attention_patch._modules_with_attention.cache_clear()
    assert not _patch.lasts("attention of borrowed_attention")
    assert not attention_patch._originals


SHAPES = [(4, 3), (2, 2)]


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    value, locations, weights = torch.randn(2, 16, 3, 5), torch.rand(2, 7, 3, 2, 4, 2), torch.rand(2, 7, 3, 2, 4)
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


def arguments(form: str, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    value, locations, weights = tensors(dtype)
    last = value.permute(0, 2, 3, 1)
    parts = [part.contiguous() for part in last.split([12, 4], -1)]
    given: dict[str, Any] = {
        "rows": value,
        "columns": last.contiguous(),
        "maps": parts,
        "planes": [part.flatten(0, 1).unflatten(-1, shape) for part, shape in zip(parts, SHAPES, strict=True)],
        "corners": value,
    }
    if form == "points_in_one_axis":
        return value, SHAPES, locations.flatten(3, 4)[:, :, :, :6], weights.flatten(3)[:, :, :, :6], [4, 2]
    return given[form], torch.tensor(SHAPES), locations, weights


@pytest.mark.filterwarnings("ignore:.*leaves:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", ["rows", "columns", "maps", "planes", "points_in_one_axis"])
def test_each_form_has_its_numbers_from_our_kernels(borrowed: ModuleType, form: str, dtype: torch.dtype) -> None:
    core = importlib.import_module("borrowed_attention.core")
    expected = getattr(core, form)(*arguments(form, dtype))
    with pliant.patch_attention("borrowed_attention"):
        core.CALLS.clear()
        more = (
            ("".join(list("default")),) if form == "points_in_one_axis" else ()
        )  # equal, not identical, to the default
        found = getattr(core, form)(*arguments(form, dtype), *more)
        assert not core.CALLS
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    getattr(core, form)(*arguments(form, dtype))
    assert core.CALLS


@pytest.mark.filterwarnings("ignore:.*leaves:UserWarning")
def test_axes_of_maps_and_points_may_be_merged(borrowed: ModuleType) -> None:
    core = importlib.import_module("borrowed_attention.core")
    value, shapes, locations, weights = arguments("columns")
    expected = core.columns(value, shapes, locations, weights)
    with pliant.patch_attention("borrowed_attention"):
        core.CALLS.clear()
        for merged in ((locations, weights.flatten(3)), (locations.flatten(3, 4), weights.flatten(3))):
            torch.testing.assert_close(core.columns(value, shapes, *merged), expected)
        assert not core.CALLS


@pytest.mark.filterwarnings("ignore:.*leaves:UserWarning")
def test_names_in_other_modules_and_classes_are_served_before_and_after_the_import(borrowed: ModuleType) -> None:
    layers = importlib.import_module("borrowed_attention.layers")
    core = sys.modules["borrowed_attention.core"]
    original, attention = layers.rows, core.Attention()
    value, shapes, locations, weights = arguments("rows")
    with pliant.patch_attention("borrowed_attention"):
        core.CALLS.clear()
        layers.rows(value, shapes, sampling_locations=locations, attention_weights=weights)
        attention(value, shapes, torch.tensor([0, 12]), locations, weights, 64)
        held = layers.rows
    assert not core.CALLS
    assert layers.rows is core.rows is original
    held(value, shapes, locations, weights)  # what a layer keeps is theirs again
    assert core.CALLS

    for name in ("borrowed_attention.core", "borrowed_attention.layers"):
        del sys.modules[name]
    with pliant.patch_attention("borrowed_attention"), pliant.patch_attention("borrowed_attention"):
        layers = importlib.import_module("borrowed_attention.layers")
        sys.modules["borrowed_attention.core"].CALLS.clear()
        layers.rows(value, shapes, locations, weights)
        assert not sys.modules["borrowed_attention.core"].CALLS


def test_what_computes_something_else_stays_theirs(borrowed: ModuleType) -> None:
    core = importlib.import_module("borrowed_attention.core")
    with pytest.warns(UserWarning, match="leaves") as warned:
        patch = pliant.patch_attention("borrowed_attention")
    said = [str(each.message) for each in warned]
    with patch:
        core.CALLS.clear()
        core.corners(*arguments("corners"))
        core.points_in_one_axis(*arguments("points_in_one_axis"), "discrete")
        assert core.CALLS == ["theirs", "theirs"]
        assert core.accelerated(*arguments("rows")) is None
    assert len(said) == 2
    assert "leaves borrowed_attention.core.corners: its numbers on a small example are not those" in said[0]
    assert "leaves borrowed_attention.core.scaled: its argument scale is not known" in said[1]


def test_packages_without_such_a_function_are_refused() -> None:
    with pytest.raises(ImportError, match="no_such_package is not installed"):
        pliant.patch_attention("no_such_package")
    with pytest.raises(ValueError, match="found no function for multi-scale deformable attention in markdown_it"):
        pliant.patch_attention("markdown_it")
    with _native.use(_native.REFERENCE), pytest.raises(RuntimeError, match="would gain nothing"):
        pliant.patch_attention("markdown_it")
    assert not attention_patch._originals
    assert not _patch.lasts("attention of markdown_it")
