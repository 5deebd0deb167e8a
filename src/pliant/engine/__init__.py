"""Training and evaluation: Lightning modules, metrics and repeatable order; no data set, no network."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from pliant.engine.classification import ClassificationModule
from pliant.engine.detection import DetectionModule
from pliant.engine.metrics import ClassificationMetrics, DetectionMetrics, SegmentationMetrics
from pliant.engine.segmentation import SegmentationModule
from pliant.engine.voc_ap import VOCAveragePrecision
from pliant.schedule import Schedule

__all__ = [
    "ClassificationMetrics",
    "ClassificationModule",
    "DetectionMetrics",
    "DetectionModule",
    "Schedule",
    "SegmentationMetrics",
    "SegmentationModule",
    "VOCAveragePrecision",
]

_MOVED = {"RunFolder": "folder", "read_weights": "weights", "write_weights": "weights"}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = f"pliant.runs.{_MOVED[name]}"
    warnings.warn(f"pliant.engine.{name} is now {place}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(place), name)
