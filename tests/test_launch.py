"""Who a process is among several, and starting them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pliant import distributed, launch


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
    assert (launch.count(), launch.count_here(), launch.rank()) == (1, 1, 0)
    assert launch.is_first()
    value = torch.tensor([1.0, 2.0])
    assert distributed.mean(value) is value
    assert distributed.gather("own") == ["own"]
    assert launch.must_launch(2)
    assert not launch.must_launch(1)


@pytest.mark.usefixtures("second_of_four")
def test_under_torchrun() -> None:
    assert (launch.count(), launch.count_here(), launch.rank()) == (4, 2, 1)
    assert not launch.is_first()
    assert not launch.must_launch(2)
    with pytest.raises(ValueError, match="torchrun started 2 processes here, and the number of devices is 3"):
        launch.must_launch(3)


def test_other_variables_of_the_environment_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (launch.count(), launch.rank()) == (1, 0)


def test_numbers_of_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        launch.must_launch(0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch.require_gpus(2, "auto")
    launch.require_gpus(3, "cpu")
    with pytest.raises(ValueError, match="3 devices are asked for, and this machine has 2 GPUs"):
        launch.require_gpus(3, "auto")


FAILS = """
import os, sys, time
if os.environ["RANK"] != "1":
    time.sleep(600)
"""


def test_a_failed_process_is_named() -> None:
    with pytest.raises(ChildProcessError, match=r"process 1 of 3 ended with code 7, and the others with it"):
        launch.launch_python(["-c", f"{FAILS}sys.exit(7)"], 3)


def test_a_failed_process_says_why() -> None:
    with pytest.raises(ChildProcessError, match=r"process [01] of 2 failed \(--resume .* leave out --strict\)"):
        launch.launch(["train", "--resume", "run", "--strict"], 2)


def test_a_process_that_is_ended_from_outside_is_named() -> None:
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 was ended by SIGTERM, and the others with it"):
        launch.launch_python(["-c", f"{FAILS}os.kill(os.getpid(), 15)"], 2)


def failure(rank: int, exitcode: int, error: BaseException | None = None, *, folder: Path) -> ProcessFailure:
    """What torch's launcher says of a process that failed, and recorded why."""
    place = folder / f"{rank}.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_ERROR_FILE", str(place))
        if error is not None:
            launch.record_failure(error)
    return ProcessFailure(rank, 1000 + rank, exitcode, str(place))


def test_the_first_cause_does_not_depend_on_who_is_seen_first(tmp_path: Path) -> None:
    def chain(*ends: tuple[int, BaseException | None], ended: Sequence[int] = ()) -> None:
        """The first end is the cause, whatever the order in which the launcher names them."""
        failures = [failure(rank, code, error, folder=tmp_path) for rank, (code, error) in enumerate(ends)]
        for order in itertools.permutations(failures):
            assert launch.first_cause(order, [1000 + rank for rank in ended]).local_rank == 0

    lost = (2, ConnectionError("process 1 lost the connection: another process has exited"))
    own = (2, ValueError("a value"))
    later = (2, OSError("the disk"))
    chain((-9, None), lost, (-15, None), ended=[2])
    chain((-9, None), (2, RuntimeError("NCCL")), lost)
    chain((-11, None), lost, (-6, None))
    chain((-15, None), lost)
    chain((143, None), lost, (-15, None), ended=[2])  # in training, SIGTERM is answered
    chain(own, later, (-15, None), ended=[2])
    chain(own, (-9, None), (143, None), ended=[1, 2])  # it did not heed SIGTERM
    chain(own, (-6, None), lost)
    chain((2, None), (-15, None), lost, ended=[1])  # a wrong option: nothing recorded
    chain(lost, (-15, None), (-9, None), ended=[1, 2])  # the others were there, but did not answer


def test_a_record_that_cannot_be_written_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch.record_failure(ValueError("nobody asks"))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    launch.record_failure(ValueError("no place"))
    assert not list(tmp_path.iterdir())
