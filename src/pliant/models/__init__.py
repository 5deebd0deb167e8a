"""The networks of the paper, each a function that builds it."""

from pliant.models.deeplab import DeepLab, deeplab
from pliant.models.faster_rcnn import FasterRCNN, faster_rcnn

__all__ = ["DeepLab", "FasterRCNN", "deeplab", "faster_rcnn"]
