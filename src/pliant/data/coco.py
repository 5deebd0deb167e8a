"""Detection data in the COCO JSON format."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeGuard
from urllib.parse import unquote

from pliant.data.box_checks import Corners, clip, degenerate, normalised
from pliant.data.detection_set import Boxes, DetectionSet
from pliant.data.files import FileFinder, is_text, relative_path
from pliant.data.image_set import Transforms, check_classes
from pliant.data.images import ImageHeader
from pliant.data.problems import DataError

_LARGEST_ID = 2**53 - 1  # integers that JSON exchanges without loss (RFC 8259, section 6)


@dataclass
class _Entry:
    """An image of the file. `header` is None if it cannot be used; `seen` serves to find duplicate boxes."""

    image_id: int
    name: str
    path: Path | None
    header: ImageHeader | None
    boxes: Boxes = field(default_factory=Boxes)
    seen: set[tuple[int, Corners, float | None, bool]] = field(default_factory=set)
    shared: bool = False


class COCODetection(DetectionSet):
    """Boxes from a COCO `instances` file. [x, y, width, height] becomes (x, y, x + width, y + height).

    Labels are 1 to C in the order of the category ids, or of `classes` if given; `category_ids` maps them back. Crowds
    keep their flag, `area` is the annotated area (of the outline) if there is one, and `image_id` is that of the file.

    Annotation ids are not used, since some tools restart them in every image. A box that occurs twice in an image with
    the same category, area and crowd flag counts once. Images that share an id cannot be used, since their boxes cannot
    be told apart. A file listed under several ids is one image with the boxes of all of them.

    Args:
        images: folder of the images.
        annotations: JSON file.
        classes: names of the categories to use, in order. Boxes of other categories are reported and skipped.
        transforms: called with image and target.
        strict: raise at the first problem.
        require_boxes: leave out images without a box to train on, that is one that is not a crowd.
        only: image files to use; None for all.
        locate: function that finds the file of a `file_name`; by default it is looked for in `images`.

    Raises:
        DataError: if the folder or file is missing, the file has another format, two categories share a name or an id,
            or no image is usable; in strict mode at any problem.

    Attributes:
        category_ids: category id of each label, for writing results.
        annotated: whether the file contains annotations; without them no target has boxes.
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
        only: Collection[Path] | None = None,
        locate: Callable[[str], Path | None] | None = None,
    ) -> None:
        super().__init__(Path(images), transforms, strict, require_boxes, only)
        self._locate = locate
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
        self._finder = FileFinder()
        entries = self._read_images(content["images"])
        self._read_annotations(content.get("annotations", []), entries)
        for image_id, entry in entries.items():
            if entry.path is not None and entry.header is not None and entry.image_id == image_id:
                self._add(entry.path, entry.header, entry.boxes, image_id)
        del self._finder, self._locate
        self._require_samples()

    @classmethod
    def from_folder(cls, root: str | Path, split: str, **options: Any) -> Self:
        """Open `annotations/instances_SPLIT.json` with the images in `SPLIT/`, the layout of COCO itself.

        Test splits without public annotations have `annotations/image_info_SPLIT.json`; test-dev shares its images with
        test.

        Args:
            root: folder that contains both. The images may also be in `images/SPLIT/`.
            split: name of a split such as `"train2017"`, or several joined by `+`, such as `"train2014+val2014"`.
            options: arguments of the class.

        Raises:
            DataError: if either is missing (the message lists the available splits), or two splits have different
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
        self.left_out += other.left_out
        known = set(self.image_ids)
        for index, (path, size, image_id) in enumerate(zip(other.paths, other.sizes, other.image_ids, strict=True)):
            if image_id in known:
                detail = f"image {image_id} ({path.name}) is also in {self.annotation_path.name}"
                self.problems.report(other.annotation_path, "duplicate id", detail)
            else:
                header = ImageHeader(size, other.turned.get(path, 1))
                self._add(path, header, other._boxes[index], image_id)

    def _read_categories(self, items: list[Any]) -> dict[int, str]:
        categories: dict[int, str] = {}
        for position, item in enumerate(items):
            key, name = _get_id(item, "id"), _get_name(item)
            where = f"categories[{position}]"
            if key is None or not name or not is_text(name):
                self._unreadable(where, "an integer id and a name are needed", item)
            elif categories.get(key, name) != name:
                detail = (
                    f"{where}: category {key} is called {categories[key]!r} and {name!r}; give each an id of its own"
                )
                raise DataError(self.annotation_path, detail)
            elif key in categories:
                self.problems.report(self.annotation_path, "duplicate id", f"{where}: category {key} comes again")
            elif name in categories.values():
                raise DataError(self.annotation_path, f"two categories are called {name!r}; rename one")
            else:
                categories[key] = name
        return categories

    def _read_images(self, items: list[Any]) -> dict[int, _Entry]:
        """Each image by its ids. An id shared by several images belongs to none."""
        entries: dict[int, _Entry] = {}
        by_path: dict[Path, _Entry] = {}
        for position, item in enumerate(items):
            image_id, name = _get_id(item, "id"), _get_name(item, "file_name")
            where = f"images[{position}]"
            if image_id is None or name is None:
                self._unreadable(where, "an integer id and a file_name are needed", item)
                continue
            path = self._find(where, item, name)
            if image_id in entries:
                self._share(where, image_id, path, entries)
                continue
            unused = path is None or self._leaves_out(path)
            entry = _Entry(image_id, name, path, None if unused or path is None else self._scan(path, item))
            if path is not None and entry.header is not None:
                known = by_path.setdefault(path, entry)
                if known is not entry:
                    detail = f"{where}: {name} is image {known.image_id} already; the boxes of image {image_id} join it"
                    self.problems.report(self.annotation_path, "duplicate image", detail, "merged")
                    entry = known
            entries[image_id] = entry
        return entries

    def _share(self, where: str, image_id: int, path: Path | None, entries: dict[int, _Entry]) -> None:
        """Report an id that occurs twice. If it names different files, their boxes cannot be assigned."""
        first = entries[image_id]
        if path is not None and path == first.path:
            self.problems.report(self.annotation_path, "duplicate id", f"{where}: image {image_id} comes again")
            return
        for place, file in (("", first.path), (f"{where}: ", path)):
            if file is not None and (file != first.path or not first.shared):
                detail = f"{place}{file} shares the id {image_id} with another image, so its boxes are unknown"
                self.problems.report(self.annotation_path, "duplicate id", detail)
        first.header, first.shared = None, True

    def _find(self, where: str, item: dict[str, Any], name: str) -> Path | None:
        """The path of an image, or None if there is none, which is reported."""
        if self._locate is not None:
            path = self._locate(name)
            if path is None:
                detail = f"{self.annotation_path.name} lists it in {where}"
                self.problems.report(self.root / name.lstrip("/"), "missing image", detail)
            return path
        try:
            relative = relative_path(name)
        except ValueError as error:
            self._unreadable(where, str(error), item)
            return None
        path = self._finder.find_named(self.root, str(relative))
        if path is None and relative.parts[0] == self.root.name:  # "val2017/photo.jpg" of the images in val2017/
            path = self._finder.find_named(self.root.parent, str(relative))
        if path is None and "%" in name:  # written as in an address: "photo%201.jpg"
            with contextlib.suppress(ValueError):
                path = self._finder.find_named(self.root, str(relative_path(unquote(name))))
        if path is None:
            beside = self._finder.beside(self.root, str(relative.with_suffix("")))
            detail = f"{self.annotation_path.name} lists it in {where}{beside}"
            self.problems.report(self.root / relative, "missing image", detail)
        return path

    def _scan(self, path: Path, item: dict[str, Any]) -> ImageHeader | None:
        """The header of an image, or None if it cannot be used, which is reported."""
        header = self._scan_image(path)
        if header is None:
            return None
        height, width = item.get("height"), item.get("width")
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            return header
        if (height, width) != header.size:
            size = header.describe((height, width))
            detail = f"{self.annotation_path.name} says {width}x{height}, the image is {size}"
            self.problems.report(path, "size mismatch", detail)
            return None
        return header.settled()

    def _read_annotations(self, items: list[Any], entries: dict[int, _Entry]) -> None:
        """Assign the boxes to their images. The id of an annotation is not used."""
        for position, item in enumerate(items):
            image_id, category = _get_id(item, "image_id"), _get_id(item, "category_id")
            where = f"annotations[{position}]"
            if image_id is None or category is None:
                self._unreadable(where, "integer image_id and category_id are needed", item)
            elif image_id not in entries:
                detail = f"{where} belongs to image {image_id}, which is not listed"
                self.problems.report(self.annotation_path, "missing image", detail)
            elif (entry := entries[image_id]).header is not None:
                key = _get_id(item, "id")
                named = f"{where} of {entry.name}" if key is None else f"annotation {key} of {entry.name} ({where})"
                self._read_box(item, named, category, entry)

    def _read_box(self, item: dict[str, Any], where: str, category: int, entry: _Entry) -> None:
        assert entry.header is not None
        if category not in self._labels:
            name = self._category_names.get(category, "not listed")
            detail = f"{where}: category {category} ({name})"
            self.problems.report(self.annotation_path, "unknown class", detail)
            return
        size, bbox = entry.header.size, item.get("bbox")
        corners = _corners(bbox)
        detail = f"{where}: bbox = {bbox!r:.200}"
        kind = degenerate(corners) or normalised(bbox or ())
        if kind is not None:
            self.problems.report(self.annotation_path, kind, detail)
            return
        box, kind = clip(corners, *size)
        if kind is not None:
            detail += f" in an image of {size[1]}x{size[0]}"
            self.problems.report(self.annotation_path, kind, detail, "skipped" if box is None else "clipped")
        if box is None:
            return
        area, crowd = item.get("area"), bool(item.get("iscrowd", 0))
        if not _is_number(area) or not 0 < area <= size[0] * size[1]:
            area = None
        same = (category, corners, area, crowd)
        if same in entry.seen:
            self.problems.report(self.annotation_path, "duplicate box", f"{detail}: the same box comes before")
            return
        entry.seen.add(same)
        entry.boxes.add(box, self._labels[category], area, crowd=crowd)

    def _unreadable(self, where: str, need: str, item: Any) -> None:
        self.problems.report(self.annotation_path, "unreadable annotation", f"{where}: {need}, got {item!r:.200}")


def available_splits(root: Path) -> list[str]:
    """The splits that have a file of annotations, or of images to submit results for."""
    names = {path.stem.partition("_")[2] for path in (root / "annotations").glob("instances_*.json")}
    info = {path.stem.removeprefix("image_info_") for path in (root / "annotations").glob("image_info_*.json")}
    return sorted(names | info)


def is_official(root: Path) -> bool:
    """Whether a folder has COCO's own layout, for one split at least."""
    for split in available_splits(root):
        with contextlib.suppress(DataError):
            _find(root, split)
            return True
    return False


def split_images(root: Path, split: str) -> list[Path]:
    """The image files of a split that are there."""
    folder, file = _find(root, split)
    names = [item.get("file_name") for item in _read(file)["images"] if isinstance(item, dict)]
    found = (folder / name for name in names if isinstance(name, str))
    return [path for path in found if path.is_file()]


def _find(root: Path, split: str) -> tuple[Path, Path]:
    """The folder of images and the annotation file of a split."""
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
    """An id: an integer, which some tools write as 3.0 or "3"."""
    value: Any = item.get(key) if isinstance(item, dict) else None
    is_whole = isinstance(value, float) and value.is_integer()
    if is_whole or (isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,16}\s*", value)):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID else None


def _get_name(item: Any, key: str = "name") -> str | None:
    """A name: text, or an integer, which is read as its digits."""
    value = item.get(key) if isinstance(item, dict) else None
    is_integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID
    return str(value) if is_integer or isinstance(value, str) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _corners(bbox: Any) -> Corners:
    """The corners of [x, y, width, height]; NaN if it is something else."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return math.nan, math.nan, math.nan, math.nan
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:  # a JSON integer of more than 308 digits
        return math.nan, math.nan, math.nan, math.nan
    return x, y, x + width, y + height
