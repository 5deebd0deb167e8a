"""Find out what a folder holds: VOC, COCO or YOLO annotations, or masks, whatever its folders are called."""

from __future__ import annotations

from pliant.data.discovery.boxes import find_voc
from pliant.data.discovery.coco import find_coco
from pliant.data.discovery.found import Found
from pliant.data.discovery.masks import find_masks
from pliant.data.discovery.split_names import WHOLE
from pliant.data.discovery.survey import Survey
from pliant.data.discovery.yolo import find_yolo

__all__ = ["WHOLE", "Found", "Survey", "find_coco", "find_masks", "find_voc", "find_yolo"]
