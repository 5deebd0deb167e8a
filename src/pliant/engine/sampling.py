"""The order of training samples and their random numbers, as functions of the seed and the step alone.

Because nothing depends on how many numbers were drawn before, a run that resumes at any step sees what it
would have seen without the interruption, and the number of loader workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
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


class TrainingBatches(Sampler[list[SampleKey]]):
    """Batches for a number of steps, as one long shuffled stream: every epoch holds each sample once.

    Batches run across the border of two epochs, so all have `batch_size` samples.

    Args:
        length: The number of samples in the data set.
        batch_size: The number of samples in a batch.
        steps: The number of batches in the whole run.
        seed: Of the shuffling.
        start: The first batch to give, to resume.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self, length: int, batch_size: int, steps: int, seed: int, start: int = 0) -> None:
        if length < 1 or batch_size < 1 or steps < 1:
            raise ValueError(f"length, batch_size and steps must be at least 1, got {length}, {batch_size} and {steps}")
        if not 0 <= start <= steps:
            raise ValueError(f"start must be between 0 and steps ({steps}), got {start}")
        self.length = length
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.start = start

    def __len__(self) -> int:
        """The number of batches in the whole run, whatever `start` is."""
        return self.steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                batch.append((epoch, int(order[position % self.length])))
            yield batch


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
