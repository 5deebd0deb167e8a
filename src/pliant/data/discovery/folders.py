"""Find images that are sorted into a folder for each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.data.classification import LabelledImages
from pliant.data.discovery.assign import Sample, assign
from pliant.data.discovery.found import Found
from pliant.data.discovery.split_names import split_word
from pliant.data.discovery.survey import Survey, folder_of
from pliant.data.image_set import ImageSet


class FoundFolders(Found):
    """Images in a folder for each class.

    Args:
        survey: the folder.
        parts: samples of each split.
        title, notes: see `Found`.
    """

    family = "folders"

    def __init__(self, survey: Survey, parts: Mapping[str, Sequence[Sample]], title: str, notes: Sequence[str]) -> None:
        super().__init__(survey.root, title, notes)
        self._parts = parts

    def splits(self) -> list[str]:
        """See `Found`."""
        return list(self._parts)

    def images(self, split: str) -> list[Path]:
        """See `Found`."""
        return [self.root / sample.file for sample in self._parts[split]]

    def read(self, split: str, **options: Any) -> ImageSet:
        """See `Found`."""
        named = [(self.root / sample.file, _class_of(sample.file)) for sample in self._parts[split]]
        everywhere = {_class_of(sample.file) for samples in self._parts.values() for sample in samples}
        options["classes"] = options.get("classes") or tuple(sorted(everywhere))
        return LabelledImages(self.root, named, **options)


def find_folders(survey: Survey) -> FoundFolders | None:
    """Images in folders named after their classes, of which there are two or more at the same depth."""
    by_depth: dict[int, list[str]] = defaultdict(list)
    for file in survey.images:
        by_depth[file.count("/")].append(file)
    if not by_depth:
        return None
    depth = max(by_depth, key=lambda depth: len(by_depth[depth]))
    images = by_depth[depth]
    classes = {_class_of(file) for file in images if folder_of(file)}
    if len(classes) < 2 or all(split_word(name) is not None for name in classes):
        return None
    parts, notes = assign([Sample(file, None) for file in images], survey)
    others = len(survey.images) - len(images)
    if others:
        notes.append(f"{others} images at another depth of folders are left out")
    return FoundFolders(survey, parts, f"images in folders of {len(classes)} classes", notes)


def _class_of(file: str) -> str:
    return folder_of(file).rpartition("/")[2]
