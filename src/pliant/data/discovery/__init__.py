"""Find out what a folder holds: VOC, COCO, YOLO, LabelMe or CSV annotations, or masks, in folders of any names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pliant.data.discovery.boxes import find_labelme, find_labelme_outlines, find_voc
from pliant.data.discovery.coco import find_coco, find_coco_outlines
from pliant.data.discovery.folders import find_folders
from pliant.data.discovery.found import Found
from pliant.data.discovery.masks import find_masks
from pliant.data.discovery.split_names import WHOLE
from pliant.data.discovery.survey import Survey
from pliant.data.discovery.tables import find_tables
from pliant.data.discovery.yolo import find_yolo, find_yolo_outlines
from pliant.data.problems import DataError

__all__ = [
    "WHOLE",
    "Found",
    "Survey",
    "discover",
    "find_among",
    "find_coco",
    "find_coco_outlines",
    "find_folders",
    "find_labelme",
    "find_labelme_outlines",
    "find_masks",
    "find_tables",
    "find_voc",
    "find_yolo",
    "find_yolo_outlines",
]

_FINDERS: dict[str, Callable[[Survey], Found | None]] = {
    "voc": find_voc,
    "coco": find_coco,
    "yolo": find_yolo,
    "labelme": find_labelme,
    "csv": find_tables,
    "masks": find_masks,
}
_OUTLINE_FINDERS: dict[str, Callable[[Survey], Found | None]] = {
    "masks": find_masks,
    "coco": find_coco_outlines,
    "yolo": find_yolo_outlines,
    "labelme": find_labelme_outlines,
}


def discover(root: str | Path, layout: str | None = None, *, masks: bool = False) -> Found:
    """Find the data set in a folder by its files.

    Of several kinds of annotations, the one for the most images is used.

    Args:
        root: the folder.
        layout: the kind to find: `"voc"`, `"coco"`, `"yolo"`, `"labelme"`, `"csv"` or `"masks"`; None for any.
        masks: whether to open masks only, which are drawn where the annotations have outlines.

    Returns:
        The data set, whose `splits()` can be opened.

    Raises:
        DataError: if there is no such folder, or nothing that is recognised; the message says what is there.
        ValueError: if there is no such kind.
    """
    finders = _OUTLINE_FINDERS if masks else _FINDERS
    if layout is not None and layout not in finders:
        raise ValueError(f"layout must be one of {', '.join(finders)}, got {layout!r}")
    survey = Survey.of(Path(root))
    found = find_among({name: find for name, find in finders.items() if layout in (None, name)}, survey)
    if found is None:
        raise DataError(root, "\n".join(["no layout of data is recognised here. Found:", *survey.seen()]))
    return found


def find_among(finders: Mapping[str, Callable[[Survey], Found | None]], survey: Survey) -> Found | None:
    """What the finder of the most images finds; the first of several. Its notes name what the others found."""
    found = {name: each for name, find in finders.items() if (each := find(survey)) is not None}
    numbers = {name: sum(len(each.images(split)) for split in each.splits()) for name, each in found.items()}
    if not found:
        return None
    best = max(found, key=lambda name: numbers[name])
    found[best].notes += [
        f"also there: {each.title}, for {numbers[name]} images (--set layout={name})"
        for name, each in found.items()
        if name != best and numbers[name]
    ]
    return found[best]
