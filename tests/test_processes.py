"""Who a process is among several, and starting them."""

from __future__ import annotations

import pytest
import torch

from pliant import processes


@pytest.fixture
def second_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives to the second of four processes on two machines."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "run",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)


def test_alone() -> None:
    assert (processes.count(), processes.count_here(), processes.rank()) == (1, 1, 0)
    assert processes.is_first()
    value = torch.tensor([1.0, 2.0])
    assert processes.mean(value) is value
    assert processes.gather("own") == ["own"]
    assert processes.must_launch(2)
    assert not processes.must_launch(1)


@pytest.mark.usefixtures("second_of_four")
def test_under_torchrun() -> None:
    assert (processes.count(), processes.count_here(), processes.rank()) == (4, 2, 1)
    assert not processes.is_first()
    assert not processes.must_launch(2)
    with pytest.raises(ValueError, match="torchrun started 2 processes here, and the number of devices is 3"):
        processes.must_launch(3)


def test_other_variables_of_the_environment_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (processes.count(), processes.rank()) == (1, 0)


def test_numbers_of_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        processes.must_launch(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    processes.require_gpus(2, "auto")
    processes.require_gpus(3, "cpu")
    with pytest.raises(ValueError, match="3 devices are asked for, and this machine has 2 GPUs"):
        processes.require_gpus(3, "auto")


def test_a_failed_process_is_named() -> None:
    with pytest.raises(ChildProcessError, match=r"process [01] of 2 ended with code 2"):
        processes.launch(["no-such-command"], 2)
