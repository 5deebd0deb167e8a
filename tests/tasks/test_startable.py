"""A training that cannot come to anything is refused before its data is read, and the error says what to set."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from pliant.commands.ablate.run import ablate
from pliant.commands.check import check
from pliant.commands.train import train
from pliant.data import DataError
from pliant.recipes import find_recipe, override
from pliant.recipes.base import to_fields
from pliant.tasks import startable
from pliant.tasks.startable import endless_warm_up, require_startable
from pliant.tasks.task import build_model, stored_recipe, task_of


def recipe(*changes: str, name: str = "voc.faster_rcnn_deform") -> Any:
    return override(find_recipe(name), changes)


@pytest.mark.parametrize("name", ["voc.faster_rcnn_deform", "voc.deeplab"])
def test_a_frozen_backbone_needs_weights(name: str, tmp_path: Path, miniature: ModuleType) -> None:
    data = miniature.make_voc(tmp_path / "data", {"train": 2, "test": 1})
    with pytest.raises(
        ValueError,
        match=r"has fixed batch norms .* weights=timm/resnet101.*weights=FILE.*backbone=timm.*weights=random",
    ):
        train(name, data, run=tmp_path / "run")
    with pytest.raises(ValueError, match="has fixed batch norms"):
        train(name, data, assignments=["backbone=timm/resnet10t", "frozen=true"], run=tmp_path / "run")
    with pytest.raises(ValueError, match="has fixed batch norms"):
        ablate(tmp_path / "out", data, name=name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_weights_that_are_missing_are_said_before_the_data_are_searched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()  # in which no layout would be recognised
    with pytest.raises(ValueError, match="has fixed batch norms"):
        train("voc.deeplab", tmp_path / "data", run=tmp_path / "run")
    with pytest.raises(DataError, match="there is no such folder of data"):
        train("voc.deeplab", tmp_path / "dat", run=tmp_path / "run")
    with pytest.raises(DataError, match="no layout of data is recognised"):
        train("voc.deeplab", tmp_path / "data", run=tmp_path / "run", assignments=["weights=random"])


def test_check_tells_of_the_data_and_that_weights_are_missing(
    tmp_path: Path, miniature: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    data = miniature.make_voc(tmp_path / "data", {"train": 2, "test": 1})
    assert check("voc.deeplab", data)
    shown = capsys.readouterr().out
    assert "train: train, 2 images" in shown
    assert "evaluate: test, 1 images" in " ".join(shown.split())  # the title of a narrow table is broken
    assert "recipe: resnet101 has fixed batch norms and no weights" in shown
    assert "expected layout" not in shown
    assert shown.endswith("The data can be trained on, once that is set.\n")
    assert check("voc.deeplab", data, assignments=["weights=gone.pth"])
    assert "recipe: weights: there is no file gone.pth" in capsys.readouterr().out
    assert check("voc.deeplab", data, assignments=["weights=random"])
    assert capsys.readouterr().out.endswith("Training can start.\n")


def test_what_may_start_without_weights(tmp_path: Path) -> None:
    require_startable(recipe("weights=random"))
    require_startable(recipe("backbone=timm/resnet10t"))
    require_startable(recipe("backbone=timm/resnet10t", "frozen=false"))
    require_startable(recipe(name="imagenet.resnet101"))
    (tmp_path / "w.pth").touch()
    require_startable(recipe(f"weights={tmp_path / 'w.pth'}"))
    with pytest.raises(FileNotFoundError, match=r"there is no file gone\.pth"):
        require_startable(recipe("weights=gone.pth"))


def test_runs_that_began_without_weights_still_open() -> None:
    old = recipe("backbone=timm/resnet10t", "frozen=true")  # as its file says
    assert old.weights is None
    assert stored_recipe(old.kind, to_fields(old)) == old
    assert build_model(old, ("a",))
    assert build_model(recipe("backbone=timm/resnet10t", "weights=random"), ("a",))


def test_batch_norms_are_trained_where_nothing_is_known_of_them() -> None:
    for changes, fixed in {
        (): True,  # the paper's networks have no others
        ("backbone=timm/resnet10t",): False,
        ("backbone=timm/resnet10t", "weights=pretrained"): True,
        ("backbone=timm/resnet10t", "weights=random"): True,
        ("backbone=timm/resnet10t", "frozen=true"): True,
        ("backbone=timm/resnet10t", "weights=pretrained", "frozen=false"): False,
    }.items():
        assert recipe(*changes).fixed_norms is fixed, changes
    free = build_model(recipe("backbone=timm/test_resnet"), ("a",))
    assert any(isinstance(module, nn.BatchNorm2d) for module in free.modules())
    assert not recipe(name="imagenet.resnet101").fixed_norms


def test_timms_weights_are_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        asked: list[str] = []  # noqa: RUF012

        def head(self, url: str, timeout: float) -> None:
            self.asked.append(url)
            raise OSError("no network")

    monkeypatch.setattr(startable, "get_session", Session)
    monkeypatch.setattr(startable, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ConnectionError, match=r"not on this machine.*weights=FILE.*weights=none"):
        require_startable(recipe("backbone=timm/resnet50", "weights=pretrained"))
    assert len(Session.asked) == 1
    monkeypatch.setattr(startable, "try_to_load_from_cache", lambda *_: "model.safetensors")
    require_startable(recipe("backbone=timm/resnet50", "weights=pretrained"))
    assert len(Session.asked) == 1
    with pytest.raises(ValueError, match="resnet101 is the paper's form"):
        require_startable(recipe("weights=pretrained"))


def test_anchors_that_fit_into_no_image_are_told() -> None:
    small = ("weights=random", "short_side=64", "max_side=96")

    def doubt(found: Any) -> str | None:
        return task_of(found).doubts(found).get("anchors")

    assert "none fits into an image of short_side=64" in str(doubt(recipe(*small)))
    assert doubt(recipe(*small, "anchor_scales=4,8")) is None
    assert doubt(recipe(*small, name="voc.deeplab")) is None
    assert doubt(recipe()) is None


def test_a_warm_up_of_all_steps_is_told() -> None:
    changes = ("lr=0.08", "lr_batch=8", "batch_size=1", "warmup_factor=0.1", "warmup_steps=50")
    assert endless_warm_up(recipe(*changes, "max_steps=51")) is None
    assert str(endless_warm_up(recipe(*changes, "max_steps=50"))).endswith("learning rate stays at 0.001")
