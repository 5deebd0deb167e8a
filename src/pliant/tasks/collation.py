"""Batches from which damaged images are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def readable(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    """A batch of the samples that are not None; two empty lists if all are."""
    found = [sample for sample in samples if sample is not None]
    return collate(found) if found else ([], [])
