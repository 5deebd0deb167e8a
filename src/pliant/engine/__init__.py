"""Training and judging: Lightning modules, metrics, run folders and repeatable order; no data set, no network."""

from pliant.engine.classification import ClassificationModule
from pliant.engine.detection import DetectionModule
from pliant.engine.metrics import ClassificationMetrics, DetectionMetrics, SegmentationMetrics
from pliant.engine.runs import RunFolder, read_weights, write_weights
from pliant.engine.schedule import Schedule
from pliant.engine.segmentation import SegmentationModule
from pliant.engine.voc_ap import VOCAveragePrecision

__all__ = [
    "ClassificationMetrics",
    "ClassificationModule",
    "DetectionMetrics",
    "DetectionModule",
    "RunFolder",
    "Schedule",
    "SegmentationMetrics",
    "SegmentationModule",
    "VOCAveragePrecision",
    "read_weights",
    "write_weights",
]
