"""Detection data in the COCO JSON format."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard

from pliant.data.base import Boxes, DetectionSet, Transforms, check_classes
from pliant.data.boxes import Corners, clip, degenerate
from pliant.data.images import UnreadableFileError, is_text, relative_path, scan_image
from pliant.data.problems import DataError

_LARGEST_ID = 2**53 - 1  # what JSON carries between programs without loss (RFC 8259, section 6)


class COCODetection(DetectionSet):
    """Boxes from a COCO ``instances`` file; [x, y, width, height] becomes (x, y, x + width, y + height).

    Labels are 1 to C in the order of the category ids, or of `classes` where given; `category_ids` leads
    back. Crowds keep their flag, ``area`` is the annotated one (that of the outline) where there is one, and
    ``image_id`` is the file's.

    Args:
        images: The folder with the images.
        annotations: The JSON file.
        classes: The category names to use, in order. Boxes of other categories are reported and skipped.
        transforms: Called with image and target.
        strict: Raise at the first problem.
        require_boxes: Leave out images without a box to train on (one that is not a crowd).

    Raises:
        DataError: If the folder or file is missing, the file is not of this format, two categories share a
            name, or no image is usable; in strict mode at any problem.

    Attributes:
        category_ids: The category id of each label that the file knows, to write results with.
        annotated: Whether the file holds annotations; without them no target has boxes.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        require_boxes: bool = False,
    ) -> None:
        super().__init__(Path(images), transforms, strict, require_boxes)
        names = check_classes(classes)
        self.annotation_path = Path(annotations)
        if not self.root.is_dir():
            raise DataError(self.root, "there is no such folder of images")
        content = _read(self.annotation_path)
        self.annotated = "annotations" in content
        categories = self._read_categories(content["categories"])
        self.classes = names or tuple(categories[key] for key in sorted(categories))
        if not self.classes:
            raise DataError(self.annotation_path, "there are no categories")
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        # Only named categories get a label; the others are unknown.
        self._labels = {key: labels[name] for key, name in categories.items() if name in labels}
        self._category_names = categories
        self.category_ids = {label: key for key, label in self._labels.items()}
        entries = self._read_images(content["images"])
        boxes: dict[int, Boxes] = {image_id: Boxes() for image_id in entries}
        self._read_annotations(content.get("annotations", []), entries, boxes)
        for image_id, (path, size) in entries.items():
            if size is not None:
                self._add(path, size, boxes[image_id], image_id)
        self._require_samples()

    @classmethod
    def from_folder(cls, root: str | Path, split: str, **options: Any) -> Self:
        """Open ``annotations/instances_SPLIT.json`` with the images in ``SPLIT/``, the layout of COCO itself.

        A split to send results of has ``annotations/image_info_SPLIT.json``; test-dev shares its images with test.

        Args:
            root: The folder that holds both; the images may also lie in ``images/SPLIT/``.
            split: Such as ``"train2017"``, or several joined by ``+``: ``"train2014+val2014"``.
            options: As for the class.

        Raises:
            DataError: If either is missing (the message lists the splits that are there), or two splits have other
                categories.
        """
        first, *others = (cls(*_find(Path(root), part), **options) for part in split.split("+"))
        for other in others:
            first._join(other)
        return first

    def _join(self, other: Self) -> None:
        if (other.classes, other.category_ids) != (self.classes, self.category_ids):
            raise DataError(other.annotation_path, f"its categories are not those of {self.annotation_path.name}")
        for problem in other.problems:
            self.problems.append(problem)
        self.annotated = self.annotated and other.annotated
        known = set(self.image_ids)
        for path, size, boxes, image_id in zip(other.paths, other.sizes, other._boxes, other.image_ids, strict=True):
            if image_id in known:
                detail = f"image {image_id} ({path.name}) is also in {self.annotation_path.name}"
                self.problems.report(other.annotation_path, "duplicate id", detail)
            else:
                self._add(path, size, boxes, image_id)

    def _read_categories(self, items: list[Any]) -> dict[int, str]:
        categories: dict[int, str] = {}
        for position, item in enumerate(items):
            key, name = _get_id(item, "id"), item.get("name") if isinstance(item, dict) else None
            if key is None or not isinstance(name, str) or not name or not is_text(name):
                self._unreadable("categories", position, "an integer id and a name are needed", item)
            elif key in categories:
                self.problems.report(self.annotation_path, "duplicate id", f"category {key} comes again")
            elif name in categories.values():
                raise DataError(self.annotation_path, f"two categories are called {name!r}; rename one")
            else:
                categories[key] = name
        return categories

    def _read_images(self, items: list[Any]) -> dict[int, tuple[Path, tuple[int, int] | None]]:
        """The path and size of each image by its id; no size where the image cannot be used."""
        entries: dict[int, tuple[Path, tuple[int, int] | None]] = {}
        for position, item in enumerate(items):
            image_id, name = _get_id(item, "id"), item.get("file_name") if isinstance(item, dict) else None
            if image_id is None or not isinstance(name, str):
                self._unreadable("images", position, "an integer id and a file_name are needed", item)
            elif image_id in entries:
                detail = f"image {image_id} ({name}) comes again"
                self.problems.report(self.annotation_path, "duplicate id", detail)
            else:
                entries[image_id] = self._scan(position, item, name)
        return entries

    def _scan(self, position: int, item: dict[str, Any], name: str) -> tuple[Path, tuple[int, int] | None]:
        try:
            path = self.root / relative_path(name)
        except ValueError as error:
            self._unreadable("images", position, str(error), item)
            return self.root, None
        if not os.path.isfile(path):
            self.problems.report(path, "missing image", f"{self.annotation_path.name} lists it")
            return path, None
        try:
            height, width = scan_image(path)
        except UnreadableFileError as error:
            self.problems.report(path, "unreadable image", str(error))
            return path, None
        claimed = (item.get("height"), item.get("width"))
        if all(isinstance(value, int) and value > 0 for value in claimed) and claimed != (height, width):
            detail = f"{self.annotation_path.name} says {claimed[1]}x{claimed[0]}, the image is {width}x{height}"
            self.problems.report(path, "size mismatch", detail)
            return path, None
        return path, (height, width)

    def _read_annotations(
        self,
        items: list[Any],
        entries: dict[int, tuple[Path, tuple[int, int] | None]],
        boxes: dict[int, Boxes],
    ) -> None:
        seen: set[int] = set()
        for position, item in enumerate(items):
            image_id, category = _get_id(item, "image_id"), _get_id(item, "category_id")
            if image_id is None or category is None:
                self._unreadable("annotations", position, "integer image_id and category_id are needed", item)
                continue
            key = _get_id(item, "id")
            where = f"annotation {key}" if key is not None else f"annotations[{position}]"
            if key is not None and key in seen:
                self.problems.report(self.annotation_path, "duplicate id", f"{where} comes again")
                continue
            seen |= {key} if key is not None else set()
            if image_id not in entries:
                detail = f"{where} belongs to image {image_id}, which is not listed"
                self.problems.report(self.annotation_path, "missing image", detail)
                continue
            path, size = entries[image_id]
            if size is not None:
                self._read_box(item, f"{where} of {path.name}", category, size, boxes[image_id])

    def _read_box(self, item: dict[str, Any], where: str, category: int, size: tuple[int, int], boxes: Boxes) -> None:
        if category not in self._labels:
            name = self._category_names.get(category, "not listed")
            detail = f"{where}: category {category} ({name})"
            self.problems.report(self.annotation_path, "unknown class", detail)
            return
        corners = _corners(item.get("bbox"))
        detail = f"{where}: bbox = {item.get('bbox')!r:.200}"
        kind = degenerate(corners)
        if kind is not None:
            self.problems.report(self.annotation_path, kind, detail)
            return
        box, kind = clip(corners, *size)
        if kind is not None:
            detail += f" in an image of {size[1]}x{size[0]}"
            self.problems.report(self.annotation_path, kind, detail, "skipped" if box is None else "clipped")
        if box is not None:
            area = item.get("area")
            if not _is_number(area) or not 0 < area <= size[0] * size[1]:
                area = None
            boxes.add(box, self._labels[category], area, crowd=bool(item.get("iscrowd", 0)))

    def _unreadable(self, section: str, position: int, need: str, item: Any) -> None:
        detail = f"{section}[{position}]: {need}, got {item!r:.200}"
        self.problems.report(self.annotation_path, "unreadable annotation", detail)


def available_splits(root: Path) -> list[str]:
    """The splits that have a file of annotations, or of images to send results of."""
    names = {path.stem.partition("_")[2] for path in (root / "annotations").glob("instances_*.json")}
    info = {path.stem.removeprefix("image_info_") for path in (root / "annotations").glob("image_info_*.json")}
    return sorted(names | info)


def _find(root: Path, split: str) -> tuple[Path, Path]:
    """The folder of images and the file of a split."""
    try:
        relative_path(split)
    except ValueError as error:
        raise DataError(root, str(error)) from error
    files = [root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "image_info")]
    file = next((file for file in files if file.is_file()), None)
    places = [split] if file != files[1] else [split, split.replace("-dev", "")]
    folders = [folder / place for place in places for folder in (root, root / "images")]
    images = next((folder for folder in folders if folder.is_dir()), None)
    if file is None or images is None:
        there = ", ".join(available_splits(root)) or "none"
        raise DataError(
            root,
            f"no split {split!r}: looked for annotations/{files[0].name} (or {files[1].name}) and for the images in "
            f"{split}/ or images/{split}/; splits with annotations there: {there}",
        )
    return images, file


def _read(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise DataError(path, "there is no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(path, f"not a JSON file: {error}") from error
    sections = ["images", "annotations", "categories"]
    if path.name.startswith("image_info_"):
        sections.remove("annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in sections):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(path, f"a COCO file holds the lists {', '.join(sections)}; got {got}")
    return content


def _get_id(item: Any, key: str) -> int | None:
    value = item.get(key) if isinstance(item, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _corners(bbox: Any) -> Corners:
    """The corners of [x, y, width, height]; not a number where it is something else."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return math.nan, math.nan, math.nan, math.nan
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:  # a JSON integer of more than 308 digits
        return math.nan, math.nan, math.nan, math.nan
    return x, y, x + width, y + height
