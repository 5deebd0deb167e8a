"""The networks of the paper, each a function that builds it."""

from pliant.models.class_aware_rpn import ClassAwareRPN, class_aware_rpn
from pliant.models.deeplab import DeepLab, deeplab
from pliant.models.faster_rcnn import FasterRCNN, faster_rcnn
from pliant.models.rfcn import RFCN, rfcn

__all__ = [
    "RFCN",
    "ClassAwareRPN",
    "DeepLab",
    "FasterRCNN",
    "class_aware_rpn",
    "deeplab",
    "faster_rcnn",
    "rfcn",
]
