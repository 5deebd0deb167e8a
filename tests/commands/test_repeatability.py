"""The same seed gives the same losses bit for bit on the CPU, whatever number of processes loads the data."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from pliant.commands.train import train

TINY = (
    "backbone=timm/test_resnet",
    "frozen=false",
    "weights=none",
    "max_steps=6",
    "batch_size=3",
    "lr=0.02",
    "short_side=48",
    "max_side=64",
    "flip=0.5",
    "validate_every=3",
    "accelerator=cpu",
    "train_split=train",
    "val_split=val",
    "test_split=val",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    return miniature.make_voc(tmp_path_factory.mktemp("voc") / "data", {"train": 7, "val": 2})


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [("voc.deeplab_deform", ("deform_layers=1", "crop=40")), ("voc.rfcn_deform", ("deform_layers=1",))],
)
def test_losses_are_the_same_bit_for_bit(data: Path, tmp_path: Path, recipe: str, changes: tuple[str, ...]) -> None:
    def tables(name: str, *more: str) -> list[str]:
        run = train(recipe, data, run=tmp_path / name, assignments=(*TINY, *changes, *more))
        return [(run.path / table).read_text() for table in ("train.csv", "val.csv")]

    first = tables("first", "workers=0")
    assert len(first[0].splitlines()) == 7
    for workers in (0, 1, 2):
        assert tables(f"workers{workers}", f"workers={workers}") == first
    # They could differ: other images come first, and without mirrored images the losses are others from the start.
    assert tables("seed", "seed=1")[0] != first[0]
    assert tables("plain", "flip=0")[0] != first[0]
