"""The order of training samples and their random numbers, as functions of the seed and the step alone.

Because nothing depends on how many numbers were drawn before, a run that resumes at any step sees what it
would have seen without the interruption, and the number of loader workers changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

SampleKey = tuple[int, int]  # epoch, index


class MapDataset(Sized, Protocol):
    """Samples by index."""

    def __getitem__(self, index: int, /) -> Any: ...


def derive_seed(*key: int) -> int:
    """A 63-bit seed that is well mixed from non-negative integers, such as (seed, step)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def orientations(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The groups for batches of one orientation: 1 where (height, width) is upright, else 0."""
    return [int(height > width) for height, width in sizes]


class TrainingBatches(Sampler[list[SampleKey]]):
    """Batches for a number of steps, from one long shuffled stream: every epoch of it holds each sample once.

    Batches run across the border of two epochs, so all have `batch_size` samples. With `groups`, samples of a group
    are held back until they fill a batch; fewer than `batch_size` of each group wait at any moment, and those that
    wait at the end of the run are not used. Of several processes each takes its part of every batch.

    Args:
        length: The number of samples in the data set.
        batch_size: The number of samples in a batch, over all processes.
        steps: The number of batches in the whole run.
        seed: Of the shuffling.
        start: The first batch to give, to resume.
        groups: The group of each sample; a batch holds samples of one group. None for a single one.
        rank: The number of this process.
        world_size: The number of processes.

    Raises:
        ValueError: If a number is out of its range, or the processes cannot share a batch equally.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        *,
        groups: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if length < 1 or batch_size < 1 or steps < 1:
            raise ValueError(f"length, batch_size and steps must be at least 1, got {length}, {batch_size} and {steps}")
        if not 0 <= start <= steps:
            raise ValueError(f"start must be between 0 and steps ({steps}), got {start}")
        if groups is not None and len(groups) != length:
            raise ValueError(f"groups must name the group of each of {length} samples, got {len(groups)}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be at least 0 and below world_size ({world_size}), got {rank}")
        if batch_size % world_size:
            raise ValueError(f"batch_size ({batch_size}) must be divisible by the number of processes ({world_size})")
        self.length = length
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.start = start
        self.groups = groups
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def __len__(self) -> int:
        """The number of batches in the whole run, whatever `start` is."""
        return self.steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        if self.groups is None:
            keys = self._keys(self.start * self.batch_size)
            for _ in range(self.start, self.steps):
                yield list(islice(keys, self.batch_size))[self.share]
        else:
            for batch in islice(self._grouped(self.groups), self.start, self.steps):
                yield batch[self.share]

    def _keys(self, first: int = 0) -> Iterator[SampleKey]:
        """The endless stream, from one of its positions."""
        start, skipped = divmod(first, self.length)
        for epoch in count(start):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            for index in order[skipped:].tolist():
                yield epoch, index
            skipped = 0

    def _grouped(self, groups: Sequence[int]) -> Iterator[list[SampleKey]]:
        waiting: dict[int, list[SampleKey]] = defaultdict(list)
        for key in self._keys():
            batch = waiting[groups[key[1]]]
            batch.append(key)
            if len(batch) == self.batch_size:
                yield batch.copy()
                batch.clear()


class SeededSamples(Dataset[Any]):
    """A data set whose random transforms draw from a seed of their own for each (epoch, index).

    Only torch's CPU generator is seeded, which is the one torchvision's transforms draw from; it is put back
    afterwards.

    Args:
        dataset: Maps an index to a sample and transforms it.
        seed: Of the whole run.
    """

    def __init__(self, dataset: MapDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Any:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, index))
            return self.dataset[index]
