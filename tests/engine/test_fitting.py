"""What several processes cannot share is refused before they meet."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pliant.engine import Schedule, SegmentationModule
from pliant.engine.fitting import FitSettings, _loading, _synchronise_norms, evaluate


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)


def module() -> SegmentationModule:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    return SegmentationModule(network, Schedule(max_steps=1, lr=0.1), ["a", "b"])


@pytest.mark.usefixtures("first_of_two")
def test_an_image_for_each_process() -> None:
    with pytest.raises(ValueError, match="2 processes cannot share 1 samples"):
        evaluate(module(), [None], list, FitSettings(batch_size=2))


@pytest.mark.usefixtures("first_of_two")
def test_trained_norms_are_synchronised_on_gpus_alone() -> None:
    def on(device: str) -> SimpleNamespace:
        return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))

    trained = module()
    with pytest.raises(ValueError, match="on GPUs alone"):
        _synchronise_norms(trained, on("cpu"))
    weight = trained.model[1].weight
    _synchronise_norms(trained, on("cuda"))
    assert isinstance(trained.model[1], nn.SyncBatchNorm)
    assert trained.model[1].weight is weight


def test_one_process_keeps_its_norms() -> None:
    alone = module()
    _synchronise_norms(alone, SimpleNamespace())
    assert type(alone.model[1]) is nn.BatchNorm2d


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_loaders_end_with_their_process_whatever_the_default_is() -> None:
    """Workers of a forkserver would outlive a killed training."""
    assert DataLoader([1, 2], **_loading(1)).multiprocessing_context.get_start_method() == "fork"
    assert list(DataLoader([1, 2], **_loading(0)))
