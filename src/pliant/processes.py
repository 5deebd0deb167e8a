"""Several processes that train or judge together: who this one is, and what they share.

torchrun starts them, on one machine or many, or `launch` does on this one. With a single process everything here is
what it would be without the others.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


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


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run a command of Pliant in several processes on this machine, and wait for them.

    Args:
        arguments: The command without ``pliant``.
        processes: Their number.

    Raises:
        ChildProcessError: If a process failed or died; the others are ended then.
    """
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
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "pliant", *arguments)
    except ChildFailedError as error:
        # One that was killed takes the others with it: it is the one to name.
        _, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        how = f"ended with code {failure.exitcode}"
        if failure.exitcode < 0:
            how = f"was ended by {signal.Signals(-failure.exitcode).name}"
        raise ChildProcessError(f"process {failure.local_rank} of {processes} {how}, and the others with it") from None
    finally:
        logs.cleanup()


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without a gradient; the tensor itself if there is one process."""
    if not _connected():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def gather(value: Any) -> list[Any]:
    """What each process has for `value`, which can be pickled, in the order of their ranks."""
    if not _connected():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def part_at_exit() -> None:
    """Close the connections to the others before the interpreter ends; threads of theirs may abort a process else."""
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    if _connected():
        distributed.destroy_process_group()


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()
