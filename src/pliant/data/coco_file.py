"""The images, categories and annotations of a file in COCO's JSON format, whatever is made of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pliant.data.box_checks import Corners
from pliant.data.detection_set import Boxes
from pliant.data.files import FileFinder, is_text, relative_path
from pliant.data.image_set import ImageSet
from pliant.data.images import ImageHeader
from pliant.data.outlines import Outline, polygon, read_runs
from pliant.data.problems import DataError

_LARGEST_ID = 2**53 - 1  # integers that JSON exchanges without loss (RFC 8259, section 6)


@dataclass
class Entry:
    """An image of the file. `header` is None if it cannot be used; `seen` serves to find duplicate objects."""

    image_id: int
    name: str
    path: Path | None
    header: ImageHeader | None
    boxes: Boxes = field(default_factory=Boxes)
    outlines: list[Outline] = field(default_factory=list)
    seen: set[tuple[int, Corners, float | None, bool]] = field(default_factory=set)
    shared: bool = False


class COCOFile(ImageSet):
    """The part of a data set that reads a file of COCO's; `_read_object` says what is made of an annotation."""

    annotation_path: Path

    def _read_file(
        self, annotations: str | Path, locate: Callable[[str], Path | None] | None
    ) -> tuple[dict[str, list[Any]], dict[int, str]]:
        """The content of the file, and the name of each category by its id."""
        self._locate = locate
        self.annotation_path = Path(annotations)
        if not self.root.is_dir():
            raise DataError(self.root, "there is no such folder of images")
        content = read_coco(self.annotation_path)
        self._finder = FileFinder()
        self._category_names = self._read_categories(content["categories"])
        return content, self._category_names

    def _read_entries(self, content: dict[str, list[Any]]) -> dict[int, Entry]:
        """The usable images of the file with their annotations, by id."""
        entries = self._read_images(content["images"])
        self._read_annotations(content.get("annotations", []), entries)
        del self._finder, self._locate
        return {
            image_id: entry
            for image_id, entry in entries.items()
            if entry.path is not None and entry.header is not None and entry.image_id == image_id
        }

    def _read_object(self, item: dict[str, Any], where: str, category: int, entry: Entry) -> None:
        raise NotImplementedError

    def _read_categories(self, items: list[Any]) -> dict[int, str]:
        categories: dict[int, str] = {}
        for position, item in enumerate(items):
            key, name = get_id(item, "id"), get_name(item)
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

    def _read_images(self, items: list[Any]) -> dict[int, Entry]:
        """Each image by its ids. An id shared by several images belongs to none."""
        entries: dict[int, Entry] = {}
        by_path: dict[Path, Entry] = {}
        for position, item in enumerate(items):
            image_id, name = get_id(item, "id"), get_name(item, "file_name")
            where = f"images[{position}]"
            if image_id is None or name is None:
                self._unreadable(where, "an integer id and a file_name are needed", item)
                continue
            path = self._find(where, item, name)
            if image_id in entries:
                self._share(where, image_id, path, entries)
                continue
            unused = path is None or self._leaves_out(path)
            entry = Entry(image_id, name, path, None if unused or path is None else self._scan(path, item))
            if path is not None and entry.header is not None:
                known = by_path.setdefault(path, entry)
                if known is not entry:
                    detail = f"{where}: {name} is image {known.image_id} already; the boxes of image {image_id} join it"
                    self.problems.report(self.annotation_path, "duplicate image", detail, "merged")
                    entry = known
            entries[image_id] = entry
        return entries

    def _share(self, where: str, image_id: int, path: Path | None, entries: dict[int, Entry]) -> None:
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

    def _read_annotations(self, items: list[Any], entries: dict[int, Entry]) -> None:
        """Assign the objects to their images. The id of an annotation is not used."""
        for position, item in enumerate(items):
            image_id, category = get_id(item, "image_id"), get_id(item, "category_id")
            where = f"annotations[{position}]"
            if image_id is None or category is None:
                self._unreadable(where, "integer image_id and category_id are needed", item)
            elif image_id not in entries:
                detail = f"{where} belongs to image {image_id}, which is not listed"
                self.problems.report(self.annotation_path, "missing image", detail)
            elif (entry := entries[image_id]).header is not None:
                key = get_id(item, "id")
                named = f"{where} of {entry.name}" if key is None else f"annotation {key} of {entry.name} ({where})"
                self._read_object(item, named, category, entry)

    def _unreadable(self, where: str, need: str, item: Any) -> None:
        self.problems.report(self.annotation_path, "unreadable annotation", f"{where}: {need}, got {item!r:.200}")


def read_outline(written: Any, label: int, size: tuple[int, int], *, crowd: bool = False) -> Outline | None:
    """The `segmentation` of an annotation: polygons or run lengths; None if it has none.

    Raises:
        ValueError: if it is something else.
    """
    if written is None or written == [] or written == {}:
        return None
    if isinstance(written, dict):
        return Outline(label, runs=read_runs(written, size), crowd=crowd)
    if isinstance(written, list) and all(isinstance(part, list) for part in written):
        return Outline(label, tuple(map(polygon, written)), crowd=crowd)
    if isinstance(written, list):  # one polygon without the list around it
        return Outline(label, (polygon(written),), crowd=crowd)
    raise ValueError(f"a segmentation is a list of polygons or run lengths, got {written!r:.80}")


def read_coco(path: Path) -> dict[str, list[Any]]:
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


def get_id(item: Any, key: str) -> int | None:
    """An id: an integer, which some tools write as 3.0 or "3"."""
    value: Any = item.get(key) if isinstance(item, dict) else None
    is_whole = isinstance(value, float) and value.is_integer()
    if is_whole or (isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,16}\s*", value)):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID else None


def get_name(item: Any, key: str = "name") -> str | None:
    """A name: text, or an integer, which is read as its digits."""
    value = item.get(key) if isinstance(item, dict) else None
    is_integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID
    return str(value) if is_integer or isinstance(value, str) else None
