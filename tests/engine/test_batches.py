"""The order of samples and their random numbers."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch

from pliant.engine.batches import SeededSamples, TrainingBatches, derive_seed, orientations


def test_every_epoch_holds_each_sample_once() -> None:
    batches = list(TrainingBatches(length=7, batch_size=3, steps=7, seed=1))
    assert all(len(batch) == 3 for batch in batches)
    counts = Counter(key for batch in batches for key in batch)
    assert counts == Counter((epoch, index) for epoch in range(3) for index in range(7))


def test_resuming_gives_the_rest() -> None:
    whole = list(TrainingBatches(7, 3, steps=9, seed=1))
    for start in (0, 1, 4, 9):
        assert list(TrainingBatches(7, 3, steps=9, seed=1, start=start)) == whole[start:]


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = [[key[1] for key in next(iter(TrainingBatches(50, 50, 1, seed)))] for seed in (1, 2)]
    assert orders[0] != orders[1]
    first, second = TrainingBatches(50, 50, 2, seed=1)
    assert [index for _, index in first] != [index for _, index in second]


def test_batch_larger_than_the_data() -> None:
    (batch,) = TrainingBatches(2, 5, 1, seed=0)
    assert [epoch for epoch, _ in batch] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("bad", [(0, 1, 1, 0, 0), (1, 0, 1, 0, 0), (1, 1, 0, 0, 0), (1, 1, 3, 0, 4)])
def test_numbers_out_of_range_are_refused(bad: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TrainingBatches(*bad)


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 1, 1, 1]])
def test_processes_share_every_batch(groups: list[int] | None) -> None:
    whole = list(TrainingBatches(7, 6, steps=9, seed=1, groups=groups))
    for world_size in (2, 3):
        parts = [
            list(TrainingBatches(7, 6, 9, seed=1, groups=groups, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert [list(chain(*shares)) for shares in zip(*parts, strict=True)] == whole
        assert {len(share) for part in parts for share in part} == {6 // world_size}


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size \(5\) must be divisible by the number of processes \(2\)"):
        TrainingBatches(7, 5, 1, seed=0, world_size=2)
    with pytest.raises(ValueError, match="rank must be"):
        TrainingBatches(7, 4, 1, seed=0, rank=2, world_size=2)


def test_groups_do_not_mix_and_no_sample_is_lost() -> None:
    groups = [0, 1, 1, 0, 1, 1, 1]
    batches = list(TrainingBatches(7, 3, steps=40, seed=1, groups=groups))
    assert {len({groups[index] for _, index in batch}) for batch in batches} == {1}
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)
    # 120 samples are given and at most 2 of each group wait: the first 16 epochs are complete.
    assert {(epoch, index) for epoch in range(16) for index in range(7)} <= set(keys)
    for start in (0, 1, 7, 40):
        assert list(TrainingBatches(7, 3, 40, seed=1, start=start, groups=groups)) == batches[start:]


def test_orientations() -> None:
    assert orientations([(3, 4), (4, 3), (3, 3)]) == [0, 1, 0]


def test_groups_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 7 samples, got 2"):
        TrainingBatches(7, 3, 1, seed=0, groups=[0, 1])


class Noise:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return float(torch.rand(()))


def test_random_numbers_follow_the_key_alone() -> None:
    samples = SeededSamples(Noise(), seed=5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    values = {key: samples[key] for key in [(0, 1), (0, 2), (1, 1)]}
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(values.values())) == 3
    torch.rand(3)
    assert samples[(0, 2)] == values[(0, 2)]
    assert SeededSamples(Noise(), seed=6)[(0, 2)] != values[(0, 2)]


def test_derived_seeds_differ() -> None:
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert 0 <= derive_seed(1, 2) < 2**63
