"""Find COCO's JSON files anywhere in a folder, and the images that they name."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pliant.data.coco import COCODetection
from pliant.data.coco_file import read_outline
from pliant.data.coco_outlines import COCOSegmentation
from pliant.data.discovery.assign import Sample, assign, main_folders
from pliant.data.discovery.found import Found
from pliant.data.discovery.masks import pictures
from pliant.data.discovery.pairing import Names
from pliant.data.discovery.split_names import split_of_path, split_word
from pliant.data.discovery.survey import Survey, folder_of, stem_of
from pliant.data.image_set import ImageSet

_MOST_FILES = 40  # JSON files of a folder that are opened; annotations of single images are in more


class _File(NamedTuple):
    """A file of annotations: the names of its images, and of its categories by id."""

    file: str
    images: list[str]
    categories: dict[Any, str]
    hollow: set[str]  # categories without a box that others name as their supercategory
    boxes: int
    outlined: bool  # whether an object has an outline that is more than its box


class FoundCOCO(Found):
    """Boxes or outlines in COCO's JSON files.

    Args:
        opens: the class of data sets that reads a file.
        survey: the folder.
        parts: files of annotations of each split, with the images to use; None for all.
        names: finder of images.
        classes: names of the categories in all files.
        title, notes: see `Found`.
    """

    family = "coco"

    def __init__(
        self,
        opens: type[COCODetection] | type[COCOSegmentation],
        survey: Survey,
        parts: dict[str, tuple[str, list[str]]],
        names: Names,
        classes: Sequence[str],
        title: str,
        notes: Sequence[str],
    ) -> None:
        super().__init__(survey.root, title, notes)
        self._opens = opens
        self._parts = parts
        self._names = names
        self._classes = tuple(classes)

    def splits(self) -> list[str]:
        """See `Found`."""
        return list(self._parts)

    def images(self, split: str) -> list[Path]:
        """See `Found`."""
        return [self.root / image for image in self._parts[split][1]]

    def read(self, split: str, **options: Any) -> ImageSet:
        """See `Found`."""
        file, images = self._parts[split]
        if len(self._parts) > 1 and options.get("only") is None and self._shared(file):
            options["only"] = [self.root / image for image in images]
        options["classes"] = options.get("classes") or self._classes
        return self._opens(self.root, self.root / file, locate=lambda name: self._locate(name, file), **options)

    def _shared(self, file: str) -> bool:
        return sum(file == other for other, _ in self._parts.values()) > 1

    def _locate(self, name: str, file: str) -> Path | None:
        found = self._names.find(name, file)
        return self.root / found[0] if len(found) == 1 else None


def find_coco(survey: Survey) -> FoundCOCO | None:
    """Boxes in COCO's JSON files, one for all images or one for each split, with the images wherever they are."""
    return _find(survey, COCODetection)


def find_coco_outlines(survey: Survey) -> FoundCOCO | None:
    """Outlines in COCO's JSON files: polygons or run lengths."""
    return _find(survey, COCOSegmentation)


def _find(survey: Survey, opens: type[COCODetection] | type[COCOSegmentation]) -> FoundCOCO | None:
    by_folder: dict[str, list[str]] = defaultdict(list)
    for file in survey.having((".json",)):
        by_folder[folder_of(file)].append(file)
    candidates = [file for files in by_folder.values() for file in files if len(files) <= _MOST_FILES]
    files = [found for file in candidates if (found := _read(survey, file)) is not None]
    if not files or (opens is COCOSegmentation and not any(each.outlined for each in files)):
        return None
    images = pictures(survey)
    names = Names(images)
    chosen, notes = _choose(files)
    parts: dict[str, tuple[str, list[str]]] = {}
    for split, each in chosen.items():
        matches = [names.find(image, each.file) for image in each.images]
        parts[split] = (each.file, list(dict.fromkeys(match[0] for match in matches if len(match) == 1)))
    if not any(there for _, there in parts.values()):
        written = next(iter(files)).images[:1]
        notes.append(f"none of the images that {files[0].file} names are there, such as {written}")
    used = {image for _, there in parts.values() for image in there}
    alone = [image for image in images if image not in used]
    if alone:
        notes.append(f"{len(alone)} images are in none of these files and are left out, such as {alone[0]}")
    if len(parts) == 1:
        ((file, there),) = parts.values()
        split_parts, rest = assign([Sample(image, None) for image in there], survey)
        parts = {name: (file, [s.file for s in samples]) for name, samples in split_parts.items()}
        notes += rest
        own = split_word(stem_of(file)) or split_of_path(file)
        if own is not None and len(parts) == 1:
            parts = {own: (file, there)}
    classes, hollow = _classes(list(chosen.values()))
    if hollow:
        notes.append(f"{', '.join(hollow)}: no box, and only named as the supercategory of others, so no class")
    title = f"COCO annotations: {', '.join(each.file for each in chosen.values())}"
    title += f"; images in {main_folders(sorted(used))}"
    title += "; masks drawn from outlines" if opens is COCOSegmentation else ""
    return FoundCOCO(opens, survey, parts, names, classes, title, notes)


def _read(survey: Survey, file: str) -> _File | None:
    """The images and categories of a file; None if it is no file of COCO's boxes."""
    try:
        content = json.loads(survey.path(file).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    sections = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in sections):
        return None
    images, annotations, categories = ([item for item in content[key] if isinstance(item, dict)] for key in sections)
    if annotations and not any("bbox" in item or "segmentation" in item for item in annotations):
        return None  # captions
    used = {item.get("category_id") for item in annotations}
    above = {str(item.get("supercategory")) for item in categories}
    names = {item.get("id"): str(item.get("name")) for item in categories if isinstance(item.get("id"), int)}
    hollow = {name for key, name in names.items() if key not in used and name in above}
    written = [str(item["file_name"]) for item in images if "file_name" in item]
    return _File(file, written, names, hollow, len(annotations), any(map(_is_outlined, annotations)))


def _is_outlined(item: dict[str, Any]) -> bool:
    """Whether an annotation has an outline that is more than a box."""
    written = item.get("segmentation")
    if isinstance(written, dict):
        return True
    try:
        outline = read_outline(written, 0, (0, 0))
    except ValueError:
        return False
    return outline is not None and not outline.is_rectangle()


def _choose(files: Sequence[_File]) -> tuple[dict[str, _File], list[str]]:
    """The file of each split, and sentences about the others."""
    words: dict[str | None, list[_File]] = defaultdict(list)
    for each in files:
        words[split_word(stem_of(each.file)) or split_of_path(each.file)].append(each)
    chosen: dict[str, _File] = {}
    left: list[_File] = []
    others = words.pop(None, [])
    for word, found in words.items():
        best = _best(found)
        if best is None:
            chosen |= {stem_of(each.file): each for each in found}
        else:
            assert word is not None
            chosen[word] = best
            left += [each for each in found if each is not best]
    if others and not chosen:
        best = _best(others)
        chosen = {stem_of(each.file): each for each in others} if best is None else {"all": best}
        left = [each for each in others if each is not best and best is not None]
    elif others:
        left += others
    notes = [f"{each.file} is not used ({len(each.images)} images, {each.boxes} boxes)" for each in left]
    return chosen, notes


def _best(files: Sequence[_File]) -> _File | None:
    """The one file among several of the same split that holds the boxes: `instances_...` in COCO's own folders."""
    if len(files) == 1:
        return files[0]
    instances = [each for each in files if stem_of(each.file).startswith("instances")]
    return instances[0] if len(instances) == 1 else None


def _classes(files: Sequence[_File]) -> tuple[list[str], list[str]]:
    """The names of the categories in all files by id, and those left out."""
    names: dict[str, None] = {}
    for each in files:
        names |= dict.fromkeys(each.categories[key] for key in sorted(each.categories))
    hollow = {n for n in names if all(n in each.hollow or n not in each.categories.values() for each in files)}
    rest = [name for name in names if name not in hollow]
    return (rest, sorted(hollow)) if rest else (list(names), [])
