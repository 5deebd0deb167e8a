"""Find masks and the images that they belong to, in folders of any names."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pliant.constants import IGNORE
from pliant.data.discovery.assign import Sample, assign, main_folders
from pliant.data.discovery.found import Found
from pliant.data.discovery.pairing import Names
from pliant.data.discovery.survey import Survey, folder_of, stem_of, suffix_of
from pliant.data.files import read_lines, read_text
from pliant.data.image_set import ImageSet, check_classes
from pliant.data.images import UnreadableFileError, opened
from pliant.data.instance_masks import largest, understand_instances
from pliant.data.listed import ListedSegmentation
from pliant.data.mask_values import COLOUR, FOREGROUND, MaskValues, read_values, understand
from pliant.data.problems import DataError
from pliant.data.segmentation_set import ScannedMask

_MASK_NAMES = re.compile(r"mask|label|annot|segm|instanc|(^|[^a-z])gt|ground|trimap|truth|target", re.IGNORECASE)
_TRIED = 6  # files of a group that show what it holds
_MOST_VALUES = 64
_MOST_TAGS = 6  # words by which files of a folder are told apart


class FoundMasks(Found):
    """Images with masks.

    Args:
        survey: the folder.
        parts: samples of each split.
        title, notes: see `Found`.
    """

    family = "masks"

    def __init__(self, survey: Survey, parts: Mapping[str, Sequence[Sample]], title: str, notes: Sequence[str]) -> None:
        super().__init__(survey.root, title, notes)
        self._survey = survey
        self._parts = parts
        self._scanned: dict[Path, ScannedMask | str] = {}
        self._understood: tuple[tuple[MaskValues, bool], MaskValues] | None = None

    def splits(self) -> list[str]:
        """See `Found`."""
        return list(self._parts)

    def images(self, split: str) -> list[Path]:
        """See `Found`."""
        return [image for image, _ in self._files(split)]

    def read(self, split: str, *, values: MaskValues | None = None, **options: Any) -> ImageSet:
        """See `Found`. `values` says what the values of the masks mean; None for what they seem to mean."""
        known = self._values(values or MaskValues(), options.get("classes"))
        options["classes"] = options.get("classes") or known.classes or self._names(known)
        return ListedSegmentation(self.root, self._files(split), values=known, scanned=self._scanned, **options)

    def _files(self, split: str) -> list[tuple[Path, Path]]:
        return [(self.root / s.image, self.root / s.annotation) for s in self._parts[split] if s.image and s.annotation]

    def _masks(self) -> list[Path]:
        return list(dict.fromkeys(mask for split in self._parts for _, mask in self._files(split)))

    def _values(self, given: MaskValues, classes: Sequence[str] | None) -> MaskValues:
        """What the values mean, by all masks; each mask is decoded once.

        Args:
            given: what the user says that they mean.
            classes: the classes that the user names.
        """
        named = len(classes or ()) > len(FOREGROUND)
        if self._understood is not None and self._understood[0] == (given, named):
            return self._understood[1]
        table = given if given.table is not None else _class_table(self._survey) or given
        by_palette = table.by_palette or _palettes_differ(self._masks())
        self._scanned.clear()
        for path in self._masks():
            try:
                self._scanned[path] = ScannedMask.of(read_values(path, by_palette=by_palette))
            except UnreadableFileError as error:
                self._scanned[path] = str(error)
        if table.table is None:
            table = self._guessed(given, by_palette, named=named)
        known = replace(table, ignored=table.ignored | given.ignored, by_palette=by_palette)
        self._understood = ((given, named), known)
        return known

    def _guessed(self, given: MaskValues, by_palette: bool, *, named: bool) -> MaskValues:
        """What the values of all masks seem to mean; `named` is whether the user names more than two classes."""
        found = [(path, each.values.tolist()) for path, each in self._scanned.items() if not isinstance(each, str)]
        if not named and self._listed_names() is None:
            objects = understand_instances(found, lambda path: read_values(path, by_palette=by_palette), given.ignored)
            if objects is not None:
                most = largest(values for _, values in found)
                zero = "#000000" if objects.coloured else "0"
                self._say(
                    f"each object of a mask has its own value, up to {most:,} in one mask, so values are no classes: "
                    f"all objects are one class, {FOREGROUND[1]} (--set mask_values={zero}:background,*:NAME gives it "
                    "another name; if the values are classes, name them with --set classes=NAME,...)"
                )
                return objects
        try:
            return understand([values for _, values in found], given.ignored)
        except ValueError as error:
            raise DataError(
                self.root,
                f"{error}; say what they mean with --set mask_values=VALUE:CLASS,... (*:CLASS for all other values)",
            ) from error

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _listed_names(self) -> tuple[str, ...] | None:
        """The names of ids in a `classes.txt`; None without one."""
        for file in self._survey.having((".txt", ".names")):
            if stem_of(file).lower() in ("classes", "class_names", "labels", "names", "label_names"):
                try:
                    return check_classes([line for line in read_lines(self.root / file) if line])
                except (OSError, ValueError):
                    continue
        return None

    def _names(self, known: MaskValues) -> tuple[str, ...]:
        """The names of ids: those of a `classes.txt`, or numbers up to the highest id in all masks."""
        listed = self._listed_names()
        if listed is not None:
            return listed
        scanned = [each for each in self._scanned.values() if not isinstance(each, str)]
        ids = {value for each in scanned for value in known.ids(each.values).tolist()} - {IGNORE, IGNORE - 1}
        highest = max(ids, default=0)
        if highest - 1 not in ids and len(ids) > 2:
            hint = f"if it marks pixels without a class, say so with --set ignored_ids={highest}"
            self._say(f"the masks' highest id is {highest}, and the ids before it are in no mask; {hint}")
        return ("background", *(f"class_{number}" for number in range(1, highest + 1)))


def find_masks(survey: Survey) -> FoundMasks | None:
    """Pairs of an image and a mask, whose names are equal or differ by words such as `_mask`."""
    groups = _groups(survey)
    masks = {key for key, files in groups.items() if _is_mask_group(survey, key, files)}
    photos = [file for key, files in groups.items() if key not in masks for file in files]
    if not masks or not photos:
        return None
    notes: list[str] = []
    pairs: dict[str, str] = {}
    by_group = {key: _pair_masks(groups[key], photos, key[1]) for key in masks}
    for key in sorted(masks, key=lambda key: (-len(by_group[key]), _rank(survey, groups[key]), key)):
        found = by_group[key]
        fresh = {image: mask for image, mask in found.items() if image not in pairs}
        if found and not fresh:
            notes.append(f"{key[0] or '.'}/ has masks too ({len(found)} of these images) and is not used")
        pairs |= fresh
    pairs = pairs or _instances(groups, masks, photos)
    if not pairs:
        return None
    alone = [image for image in photos if image not in pairs]
    if alone:
        notes.append(f"{len(alone)} images have no mask and are left out, such as {alone[0]}")
    used = set(pairs.values())
    rest = [file for key in masks for file in groups[key] if file not in used and folder_of(file) not in used]
    if rest and not notes:
        notes.append(f"{len(rest)} masks fit no image and are left out, such as {rest[0]}")
    samples = [Sample(image, mask) for image, mask in sorted(pairs.items())]
    parts, others = assign(samples, survey)
    title = f"images with masks: images in {main_folders(sorted(pairs))}; masks in {main_folders(sorted(used))}"
    return FoundMasks(survey, parts, title, [*notes, *others])


def pictures(survey: Survey) -> list[str]:
    """The images of a folder without masks of the same names."""
    images = survey.images
    folders: dict[str, set[str]] = defaultdict(set)
    by_folder: dict[str, list[str]] = defaultdict(list)
    for file in images:
        folders[stem_of(file)].add(folder_of(file))
        by_folder[folder_of(file)].append(file)
    double = {folder for places in folders.values() if len(places) > 1 for folder in places}
    masks = {folder for folder in double if _looks_like_masks(survey, by_folder[folder])}
    return [file for file in images if folder_of(file) not in masks] if masks < double else images


def _groups(survey: Survey) -> dict[tuple[str, str, str], list[str]]:
    """The images by folder, last word of their names, and suffix: a folder may hold images and masks alike."""
    folders: dict[str, list[str]] = defaultdict(list)
    for file in survey.images:
        folders[folder_of(file)].append(file)
    shorten = len(folders) > 60  # a folder for each image: those of the same name are one group
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for folder, files in folders.items():
        stems = [stem_of(file) for file in files]
        words = Counter(map(_last_word, stems))
        tags = {word for word, number in words.items() if number > 1}
        double = len(set(stems)) < len(stems)
        for file, stem in zip(files, stems, strict=True):
            word = _last_word(stem)
            tag = word if len(tags) <= _MOST_TAGS and word in tags else ""
            name = folder.rpartition("/")[2] if shorten else folder
            groups[name, tag, suffix_of(file) if double else ""].append(file)
    return dict(groups)


def _last_word(stem: str) -> str:
    """The last word of a name, or the first one before a number; in lower case."""
    match = re.search(r"[_\-. ](\w*[A-Za-z]\w*?)$", stem) or re.match(r"([A-Za-z]+)[_\-. ]?\d", stem)
    return match.group(1).rpartition("_")[2].lower() if match else ""


def _is_mask_group(survey: Survey, key: tuple[str, str, str], files: Sequence[str]) -> bool:
    named = _MASK_NAMES.search(key[0].rpartition("/")[2]) or _MASK_NAMES.search(key[1])
    return bool(named) or _looks_like_masks(survey, files)


def _looks_like_masks(survey: Survey, files: Sequence[str]) -> bool:
    """Whether most of some images have few different values, as masks do."""
    tried = files[:: max(1, len(files) // _TRIED)][:_TRIED]
    looks = [_looks_like_mask(survey.path(file)) for file in tried]
    return 2 * sum(looks) > len(looks)


def _looks_like_mask(path: Path) -> bool:
    try:
        with opened(path) as image:
            if image.mode in ("P", "1"):
                return True
            pixels = np.asarray(image)
    except UnreadableFileError:
        return False
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / 2**16) ** 0.5))
    pixels = pixels[::step, ::step]
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return bool(np.mean((pixels > 40) & (pixels < 215)) < 0.02)
    flat = pixels.reshape(-1, pixels.shape[2]) if pixels.ndim == 3 else pixels.reshape(-1, 1)
    return len(np.unique(flat, axis=0)) <= min(_MOST_VALUES, max(3, len(flat) // 16))


def _rank(survey: Survey, files: Sequence[str]) -> int:
    """0 for masks of ids or levels, 1 for those of colours."""
    try:
        return int(read_values(survey.path(files[0])).max() >= COLOUR)
    except UnreadableFileError:
        return 2


def _without_end(stem: str) -> str:
    return re.sub(r"([_\-. ]*[A-Za-z]+)+$", "", stem)


def _without_start(stem: str) -> str:
    return re.sub(r"^([A-Za-z]+[_\-. ]*)+", "", stem)


_RULES = (
    (str, str),
    (str, _without_end),
    (_without_end, _without_end),
    (str, _without_start),
    (_without_start, _without_start),
    (lambda stem: _without_start(_without_end(stem)), lambda stem: _without_start(_without_end(stem))),
)


def _pair_masks(masks: Sequence[str], photos: Sequence[str], tag: str) -> dict[str, str]:
    """The mask of each image, by the rule of names under which most masks have an image.

    Args:
        masks, photos: the files.
        tag: the word with which the masks' names end, if they do.
    """
    best: dict[str, str] = {}

    def without_tag(stem: str) -> str:
        return stem[: -len(tag)].rstrip("_-. ") if tag and stem.lower().endswith(tag) else ""

    for of_photo, of_mask in (*_RULES, (str, without_tag), (_without_end, without_tag)):
        names = Names(photos, key=of_photo)
        found: dict[str, str] = {}
        for mask in masks:
            name = of_mask(stem_of(mask))
            images = names.find(name, mask) if name else []
            if len(images) == 1 and images[0] not in found:
                found[images[0]] = mask
        if len(found) > len(best):
            best = found
    return best


def _instances(groups: Mapping[Any, Sequence[str]], masks: Collection[Any], photos: Sequence[str]) -> dict[str, str]:
    """The folder of masks of single objects of each image, where each image has its own."""
    beside: dict[str, list[str]] = defaultdict(list)
    for image in photos:
        beside[folder_of(folder_of(image))].append(image)
        beside[folder_of(image)].append(image)
    folders = {folder_of(file) for key in masks for file in groups[key]}
    found = {folder: beside.get(folder_of(folder), []) for folder in folders}
    return {images[0]: folder for folder, images in found.items() if len(images) == 1}


def _palettes_differ(paths: Sequence[Path]) -> bool:
    """Whether palette images give the same index different colours, so that indices mean nothing."""
    palette: dict[int, tuple[int, ...]] = {}
    for path in paths[:: max(1, len(paths) // 50)]:
        try:
            with opened(path) as image:
                if image.mode != "P":
                    return False
                colours = image.getpalette() or []
                used = np.unique(np.asarray(image)).tolist()
        except (UnreadableFileError, IsADirectoryError):
            continue
        for index in used:
            colour = tuple(colours[3 * index : 3 * index + 3])
            if palette.setdefault(index, colour) != colour:
                return True
    return False


def _class_table(survey: Survey) -> MaskValues | None:
    """The classes of a table: of colours, with the columns name, r, g and b, as in `class_dict.csv`, or of values, with
    the columns `Pixel Value` and `Class`, as in Roboflow's `_classes.csv`."""
    for file in survey.having((".csv",)):
        try:
            rows = list(csv.DictReader(read_text(survey.path(file)).splitlines(), skipinitialspace=True))
            rows = [{key.strip().lower(): value for key, value in row.items()} for row in rows]
            if rows and "pixel value" in rows[0]:
                texts = [f"{row['pixel value']}:{row['class']}" for row in rows]
            else:
                texts = [f"#{int(row['r']):02x}{int(row['g']):02x}{int(row['b']):02x}:{row['name']}" for row in rows]
            if texts:
                return MaskValues.given(texts)
        except (OSError, ValueError, KeyError, AttributeError, csv.Error):
            continue
    return None
