"""Segmentation data in the COCO JSON format: masks drawn from polygons and run lengths."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pliant.constants import IGNORE
from pliant.data.coco import bounded
from pliant.data.coco_file import COCOFile, Entry, read_outline
from pliant.data.drawn_set import DrawnSegmentation, checked
from pliant.data.image_set import Transforms
from pliant.data.mask_values import MaskValues
from pliant.data.outlines import Outline, is_background, rectangle


class COCOSegmentation(COCOFile, DrawnSegmentation):
    """Masks from the `segmentation` of a COCO `instances` file, see `DrawnSegmentation`.

    Crowds belong to their class like other objects, but lie below them. An object with a `bbox` alone is ignored.

    Args:
        images: folder of the images.
        annotations: JSON file.
        classes: names of the categories to use, in order; a background is added in front.
        transforms: called with image and mask.
        strict: raise at the first problem.
        only: image files to use; None for all.
        locate: function that finds the file of a `file_name`; by default it is looked for in `images`.
        values: the classes that are ignored.

    Raises:
        DataError: as `COCODetection`.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
        locate: Callable[[str], Path | None] | None = None,
        values: MaskValues | None = None,
    ) -> None:
        super().__init__(Path(images), transforms, strict, only, values)
        content, categories = self._read_file(annotations, locate)
        labels = self._use_classes(classes, [categories[key] for key in sorted(categories)])
        self._labels = {key: 0 if is_background(name) else labels.get(name, IGNORE) for key, name in categories.items()}
        for entry in self._read_entries(content).values():
            assert entry.path is not None
            assert entry.header is not None
            self._add_drawn(entry.path, entry.header, entry.outlines, self.annotation_path)
        self._require_samples()

    def _read_object(self, item: dict[str, Any], where: str, category: int, entry: Entry) -> None:
        assert entry.header is not None
        size, label = entry.header.size, self._labels.get(category, IGNORE)
        if label == IGNORE:
            name = self._category_names.get(category, "not listed")
            detail = f"{where}: category {category} ({name}), whose pixels are ignored"
            self.problems.report(self.annotation_path, "unknown class", detail)
        try:
            outline = read_outline(item.get("segmentation"), label, size, crowd=bool(item.get("iscrowd", 0)))
        except ValueError as error:
            self._unreadable(where, str(error), item)
            return
        if outline is None:
            corners = bounded(item.get("bbox"), size)
            detail = f"{where}: bbox = {item.get('bbox')!r:.200}, whose pixels are ignored"
            self.problems.report(self.annotation_path, "box without an outline", detail)
            if corners is None:
                return
            outline = Outline(IGNORE, (rectangle(corners),))
        found = checked(outline, self.annotation_path, where, size, self.problems)
        if found is not None:
            entry.outlines.append(found)
