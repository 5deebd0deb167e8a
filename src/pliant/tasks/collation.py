"""Collating samples of which some could not be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def readable(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    """Collate the samples that are not None; if all are None, return two empty lists."""
    found = [sample for sample in samples if sample is not None]
    return collate(found) if found else ([], [])
