"""Data sets for detection, segmentation and classification, and their transforms."""

from pliant.data.cityscapes import CityscapesSegmentation
from pliant.data.classification import ImageFolder
from pliant.data.coco import COCODetection
from pliant.data.detection_set import DetectionSet
from pliant.data.discovery import Found, discover
from pliant.data.glyphs import Glyphs, Scene
from pliant.data.image_set import ImageSet
from pliant.data.problems import DataError, Problem, ProblemLog
from pliant.data.segmentation_set import SegmentationSet
from pliant.data.voc import VOCDetection, VOCSegmentation
from pliant.data.voc_layout import VOC_CLASSES

__all__ = [
    "VOC_CLASSES",
    "COCODetection",
    "CityscapesSegmentation",
    "DataError",
    "DetectionSet",
    "Found",
    "Glyphs",
    "ImageFolder",
    "ImageSet",
    "Problem",
    "ProblemLog",
    "Scene",
    "SegmentationSet",
    "VOCDetection",
    "VOCSegmentation",
    "discover",
]
