"""What the processes of one training or evaluation share, by torch's process group; without a group, one process."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def connected() -> bool:
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The rank of this process in the group; 0 without a group."""
    return dist.get_rank() if connected() else 0


def count() -> int:
    """The number of processes in the group; 1 without a group."""
    return dist.get_world_size() if connected() else 1


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without a gradient; the tensor itself without a group."""
    if not connected():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gather(value: Any) -> list[Any]:
    """The `value` of every process, in the order of their ranks. It must be picklable."""
    if not connected():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
