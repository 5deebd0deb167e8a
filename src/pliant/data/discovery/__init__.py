"""Find out what a folder holds: VOC, COCO or YOLO annotations, or masks, whatever its folders are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pliant.data.discovery.boxes import find_voc
from pliant.data.discovery.coco import find_coco
from pliant.data.discovery.folders import find_folders
from pliant.data.discovery.found import Found
from pliant.data.discovery.masks import find_masks
from pliant.data.discovery.split_names import WHOLE
from pliant.data.discovery.survey import Survey
from pliant.data.discovery.yolo import find_yolo
from pliant.data.problems import DataError

__all__ = [
    "WHOLE",
    "Found",
    "Survey",
    "discover",
    "find_among",
    "find_coco",
    "find_folders",
    "find_masks",
    "find_voc",
    "find_yolo",
]

_FINDERS: dict[str, Callable[[Survey], Found | None]] = {
    "voc": find_voc,
    "coco": find_coco,
    "yolo": find_yolo,
    "masks": find_masks,
}


def discover(root: str | Path, layout: str | None = None) -> Found:
    """Find the data set in a folder by its files.

    Of several kinds of annotations, the one for the most images is used.

    Args:
        root: the folder.
        layout: the kind to find: `"voc"`, `"coco"`, `"yolo"` or `"masks"`; None for any.

    Returns:
        The data set, whose `splits()` can be opened.

    Raises:
        DataError: if there is no such folder, or nothing that is recognised; the message says what is there.
        ValueError: if there is no such kind.
    """
    if layout is not None and layout not in _FINDERS:
        raise ValueError(f"layout must be one of {', '.join(_FINDERS)}, got {layout!r}")
    survey = Survey.of(Path(root))
    found = find_among({name: find for name, find in _FINDERS.items() if layout in (None, name)}, survey)
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
