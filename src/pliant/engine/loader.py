"""A DataLoader that raises the errors of its workers as they are; torch's makes new ones of their text."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, get_worker_info

from pliant.engine.batches import MapDataset


class Loader(DataLoader[Any]):
    """torch's DataLoader; an error of a worker is raised with its type and attributes.

    Args:
        dataset: Samples by key.
        collate: Makes a batch of a list of samples.
        options: Further arguments of torch's DataLoader.
    """

    def __init__(self, dataset: MapDataset | Dataset[Any], collate: Callable[[list[Any]], Any], **options: Any) -> None:
        def collated(samples: list[Any]) -> Any:
            return next((sample for sample in samples if isinstance(sample, _Failure)), None) or collate(samples)

        super().__init__(_ErrorsAsSamples(dataset), collate_fn=collated, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch


class _Failure(NamedTuple):
    """A sample that could not be loaded, on its way out of a worker."""

    error: Exception


class _ErrorsAsSamples(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Exception as error:
            if get_worker_info() is None or not _can_be_pickled(error):
                raise
            return _Failure(error)


def _can_be_pickled(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the error's own methods raise
        return False
    return True
