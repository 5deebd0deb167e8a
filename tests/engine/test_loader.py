"""Errors of a loader's workers reach the training process as they were raised."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from pliant.data import DataError
from pliant.engine.loader import Loader


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Samples:
    """Six numbers, of which the fifth cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 4:
            raise self.error
        return index


def outcome(error: Exception, workers: int) -> tuple[list[int], Exception | None]:
    loader, batches = Loader(Samples(error), sum, batch_size=2, num_workers=workers), []
    try:
        for batch in loader:
            batches.append(batch)
    except Exception as caught:
        gc.collect()
        return batches, caught.with_traceback(None)
    return batches, None


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_keeps_its_type_and_attributes(workers: int) -> None:
    batches, error = outcome(DataError("images", "is gone"), workers)
    assert batches == [1, 5]
    assert isinstance(error, DataError)
    assert (error.path, error.detail, str(error)) == (Path("images"), "is gone", "images: is gone")


def test_an_error_that_cannot_be_pickled_is_torchs() -> None:
    batches, error = outcome(Unpicklable(1, 2), workers=1)
    assert batches == [1, 5]
    assert "Unpicklable: 1 and 2" in str(error)
