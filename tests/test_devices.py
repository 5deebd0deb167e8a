"""Which device a command runs a network on."""

from __future__ import annotations

import pytest
import torch
from typer.main import get_command

from pliant.cli import app
from pliant.devices import choose_device
from pliant.engine.fitting import FitSettings, _devices


def test_the_device_that_is_asked_for_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == torch.device("cuda")
    assert choose_device(None, "cpu") == torch.device("cpu")
    assert choose_device("cpu", "gpu") == torch.device("cpu")
    assert choose_device("cuda:1", "cpu") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="--device cuda:2: torch finds 2 GPUs"):
        choose_device("cuda:2")
    with pytest.raises(ValueError, match="--device takes cpu, cuda or cuda:NUMBER, got 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")


def test_the_trainer_runs_on_it() -> None:
    for device, expected in (
        (None, ("auto", 1)),
        (torch.device("cpu"), ("cpu", 1)),
        (torch.device("cuda"), ("gpu", 1)),
        (torch.device("cuda:1"), ("gpu", [1])),
    ):
        options = _devices(FitSettings(1, device=device))
        assert (options["accelerator"], options["devices"]) == expected


def test_every_command_that_runs_a_network_takes_it() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    takes = {name for name, each in commands.items() if any("--device" in option.opts for option in each.params)}
    assert takes == {"train", "eval", "predict", "look", "ablate", "demo"}
