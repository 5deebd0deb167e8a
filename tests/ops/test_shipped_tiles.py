"""Launch settings come from the table that ships where it has a problem's class, and else from arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pliant.ops import _gpu, _native
from pliant.ops.deform_conv2d import shipped
from pliant.ops.deform_conv2d import tiles as launching
from pliant.ops.deform_conv2d.tiles import Problem, Tiles

CUDA = torch.device("cuda")
PROBLEM = Problem(
    torch.bfloat16, CUDA, cells=2394, outs=512, groups=1, unit=512, taps=9, far=False, sampled=512, offset_groups=1
)
SHAPE = {"cells": 2394, "outs": 512, "groups": 1, "unit": 512, "taps": 9}
BEST = Tiles(64, 64, 128, 4, 1)


def entry(kernel: str = "forward", **changed: Any) -> dict[str, Any]:
    tiles = {"tiles": BEST._asdict()}
    return {"capability": [9, 0], "kernel": kernel, "dtype": "bfloat16", "shape": SHAPE, **tiles, **changed}


@pytest.fixture(autouse=True)
def _an_h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(shipped, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(_native, "interpreting", lambda: False)
    monkeypatch.setattr(_gpu, "multiprocessors", lambda device: 132)
    shipped._find.cache_clear()
    yield
    shipped._find.cache_clear()


def ships(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, Any]) -> None:
    monkeypatch.setattr(shipped, "entries", lambda: list(entries))


def test_an_entry_of_the_class_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ships(monkeypatch, entry())
    assert launching.tiles("forward", PROBLEM) == BEST
    assert launching.tiles("forward", PROBLEM._replace(cells=4 * 2394, unit=400)) == BEST
    with launching.forced(forward=Tiles(32, 32, 32)):
        assert launching.tiles("forward", PROBLEM) == Tiles(32, 32, 32)


@pytest.mark.parametrize(
    "changed",
    [
        {"cells": 5 * 2394},
        {"cells": 400},
        {"outs": 256},
        {"unit": 256},
        {"groups": 2},
        {"taps": 25},
        {"dtype": torch.float16},
        {"device": torch.device("cpu")},
    ],
    ids=lambda changed: ", ".join(changed),
)
def test_other_classes_are_left_to_arithmetic(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = PROBLEM._replace(**changed)
    ships(monkeypatch)
    by_arithmetic = launching.tiles("forward", other)
    shipped._find.cache_clear()
    ships(monkeypatch, entry(), entry("gather"), entry(capability=[8, 0], tiles=Tiles(16, 16, 16)._asdict()))
    assert launching.tiles("forward", other) == by_arithmetic


def test_the_nearest_number_of_cells_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Tiles(128, 32, 256, 8, 2)
    ships(monkeypatch, entry(shape=SHAPE | {"cells": 9000}, tiles=other._asdict()), entry())
    assert launching.tiles("forward", PROBLEM._replace(cells=2000)) == BEST
    assert launching.tiles("forward", PROBLEM._replace(cells=7000)) == other


def test_float32_with_and_without_tf32_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    ships(monkeypatch, entry(dtype="tf32"))
    single = PROBLEM._replace(dtype=torch.float32)
    for precision, taken in (("tf32", True), ("ieee", False)):
        monkeypatch.setattr(_gpu, "precision", lambda dtype, precision=precision: precision)
        assert (launching.tiles("forward", single) == BEST) is taken


def test_the_table_chooses_the_design(monkeypatch: pytest.MonkeyPatch) -> None:
    ships(monkeypatch)
    assert launching.by_columns(PROBLEM, backward=False)
    shipped._find.cache_clear()
    fused = {key: value for key, value in entry("forward_by_columns", design="fused").items() if key != "tiles"}
    ships(monkeypatch, fused)
    assert not launching.by_columns(PROBLEM, backward=False)
    assert launching.by_columns(PROBLEM, backward=True)


def test_the_table_that_ships_is_whole() -> None:
    for found in shipped.entries():
        assert found["dtype"] in ("bfloat16", "float16", "tf32", "float32")
        assert set(found["shape"]) == set(SHAPE)
        if found["kernel"].endswith("_by_columns"):
            assert found["design"] in ("columns", "fused")
            continue
        assert found["kernel"] in launching.KERNELS
        tiles = Tiles(**found["tiles"])
        assert all(side & (side - 1) == 0 for side in (tiles.cells, tiles.channels, tiles.outs))
