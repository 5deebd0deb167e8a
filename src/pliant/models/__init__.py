"""The networks of the paper, each built by a function, and the classifiers that their backbones come from."""

from pliant.models.batched import BatchedDetector
from pliant.models.class_aware_rpn import ClassAwareRPN, class_aware_rpn
from pliant.models.classifier import Classifier, classifier
from pliant.models.deeplab import DeepLab, deeplab
from pliant.models.faster_rcnn import FasterRCNN, faster_rcnn
from pliant.models.fpn_faster_rcnn import FPNFasterRCNN, fpn_faster_rcnn
from pliant.models.rfcn import RFCN, rfcn

__all__ = [
    "RFCN",
    "BatchedDetector",
    "ClassAwareRPN",
    "Classifier",
    "DeepLab",
    "FPNFasterRCNN",
    "FasterRCNN",
    "class_aware_rpn",
    "classifier",
    "deeplab",
    "faster_rcnn",
    "fpn_faster_rcnn",
    "rfcn",
]
