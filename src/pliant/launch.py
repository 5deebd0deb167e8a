"""Several processes that train or evaluate together: which one this is, and starting them.

torchrun starts them, on one machine or many, or `launch` does on this one. With a single process everything here is
what it would be without the others.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pliant import distributed

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def count() -> int:
    """The number of processes, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def count_here() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def rank() -> int:
    """The number of this process among all of them, from 0."""
    return int(os.environ.get("RANK", "0")) if launched() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def launched() -> bool:
    """Whether torchrun or `launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def must_launch(devices: int) -> bool:
    """Whether several processes are asked for, and this one is still alone.

    Args:
        devices: How many processes there should be on this machine, each with a GPU of its own or on the CPU.

    Raises:
        ValueError: If the number is below 1 or not the one that torchrun started.
    """
    if devices < 1:
        raise ValueError(f"the number of devices must be at least 1, got {devices}")
    if launched() and devices != count_here():
        raise ValueError(f"torchrun started {count_here()} processes here, and the number of devices is {devices}")
    return devices > count_here()


def require_gpus(devices: int, accelerator: str) -> None:
    """Raise `ValueError` if there are GPUs and an accelerator that may use them, and they are fewer than `devices`."""
    there = torch.cuda.device_count()
    if accelerator != "cpu" and 0 < there < devices:
        raise ValueError(f"{devices} devices are asked for, and this machine has {there} GPUs")


@dataclass(frozen=True)
class Launch:
    """The processes that a user asks a command for.

    Attributes:
        devices: How many on this machine, each with a GPU of its own or on the CPU; None for one, or as many as
            torchrun started.
        command: The command line as it was given, without ``pliant``; each process runs it.
    """

    devices: int | None = None
    command: tuple[str, ...] = ()

    @property
    def needed(self) -> bool:
        """Whether the processes are still to be started; see `must_launch`."""
        return self.devices is not None and must_launch(self.devices)

    def run(self, accelerator: str) -> None:
        """Start the processes and wait for them; see `launch` and `require_gpus`."""
        assert self.devices is not None
        if not self.command:
            raise ValueError("several processes are started by the command line: pliant COMMAND ... --devices N")
        require_gpus(self.devices, accelerator)
        launch(self.command, self.devices)


ALONE = Launch()


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run a command of Pliant in several processes on this machine, and wait for them.

    Args:
        arguments: The command without ``pliant``.
        processes: Their number.

    Raises:
        ChildProcessError: If a process failed or died; the others are ended then. The first cause is named, with the
            error that the process recorded, and never a process that was ended because of another.
    """
    launch_python(["-m", "pliant", *arguments], processes)


def launch_python(arguments: Sequence[str], processes: int) -> None:
    """As `launch`, with the arguments of the Python interpreter."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = tempfile.TemporaryDirectory()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
        logs_specs=DefaultLogsSpecs(log_dir=logs.name),
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(torch.get_num_threads() // processes, 1)))
    try:
        with _ended_by_launcher() as ended:
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        cause = first_cause(error.failures.values(), ended)
        raise ChildProcessError(_told(cause, processes)) from None
    finally:
        logs.cleanup()


def record_failure(error: BaseException) -> None:
    """Write why this process fails where its launcher, `launch` or torchrun, looks for it; nothing if it has none."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not place:
        return
    record = {
        "message": " ".join(str(error).split()) or type(error).__name__,
        "timestamp": int(time.time()),
        "monotonic_ns": time.monotonic_ns(),
        "lost_others": isinstance(error, ConnectionError),
    }
    # Written under another name first: the launcher may end this process meanwhile.
    partial = f"{place}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.replace(partial, place)


def first_cause(failures: Iterable[ProcessFailure], ended: Collection[int] = ()) -> ProcessFailure:
    """Of processes that failed together, the one that the others followed.

    The order of their ends is not known: several may have ended before anyone looked. But how they ended is. A process
    that the launcher ended only followed. Of the others, one that was killed from outside or crashed comes first,
    then one that recorded an error of its own, the earliest first; after these one that left without a record, one
    that aborted, as threads of a connection do when it breaks, and at last one that says that it lost the others.

    Args:
        failures: Those of torch's launcher, one at least.
        ended: The ids of the processes that the launcher itself ended.
    """

    def order(failure: ProcessFailure) -> tuple[bool, int, int]:
        record = failure.error_file_data
        signalled = _signal(failure)
        if signalled is not None:
            kind = 3 if signalled == signal.SIGABRT else 0
        elif "monotonic_ns" in record:
            kind = 4 if record["lost_others"] else 1
        else:
            kind = 2
        return failure.pid in ended, kind, record.get("monotonic_ns", 0)

    return min(failures, key=order)


def _told(failure: ProcessFailure, processes: int) -> str:
    signalled = _signal(failure)
    if signalled is not None:
        how = f"was ended by {signalled.name}"
    elif "monotonic_ns" in failure.error_file_data:
        how = f"failed ({failure.message})"
    else:
        how = f"ended with code {failure.exitcode}"
    return f"process {failure.local_rank} of {processes} {how}, and the others with it"


def _signal(failure: ProcessFailure) -> signal.Signals | None:
    """The signal that ended a process, also if the process caught it and left with the corresponding code."""
    number = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128
    if failure.exitcode >= 0 and number not in (signal.SIGTERM, signal.SIGINT):
        return None
    return signal.Signals(number)


@contextlib.contextmanager
def _ended_by_launcher() -> Iterator[set[int]]:
    """The ids of the processes that torch's launcher ends meanwhile, which it tells its log alone; nothing is shown."""
    ended: set[int] = set()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if str(record.msg).startswith(("Sending process", "Unable to shutdown process")) and record.args:
                ended.add(int(record.args[0]))  # type: ignore[index, call-overload]

    launcher = logging.getLogger("torch.distributed.elastic")
    teller = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    levels, listener = [(logger, logger.level, logger.propagate) for logger in (launcher, teller)], Listener()
    launcher.setLevel(logging.CRITICAL)
    teller.setLevel(logging.WARNING)
    teller.propagate = False
    teller.addHandler(listener)
    try:
        yield ended
    finally:
        teller.removeHandler(listener)
        for logger, level, propagate in levels:
            logger.setLevel(level)
            logger.propagate = propagate


def part_at_exit() -> None:
    """Close the process group at exit; otherwise its threads can abort the interpreter."""
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    if distributed.connected():
        torch.distributed.destroy_process_group()
