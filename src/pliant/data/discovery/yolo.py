"""Find YOLO data: text files of boxes beside images, the names of the classes, and the splits of `data.yaml`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pliant.data.discovery.assign import Sample, assign, main_folders, read_lists
from pliant.data.discovery.boxes import FoundBoxes, FoundOutlines, spread
from pliant.data.discovery.masks import pictures
from pliant.data.discovery.pairing import pair
from pliant.data.discovery.survey import Survey, folder_of, stem_of
from pliant.data.files import read_lines, read_text
from pliant.data.yolo import YOLOFormat, read_line

_NAMES = ("classes", "names", "obj", "labels", "predefined_classes", "_darknet")
_YAML_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def find_yolo(survey: Survey) -> FoundBoxes | None:
    """Boxes in YOLO's text files, each named like its image; names and splits from a `data.yaml` if there is one."""
    found = _find(survey)
    return None if found is None else found[0]


def find_yolo_outlines(survey: Survey) -> FoundOutlines | None:
    """Polygons in YOLO's text files."""
    found = _find(survey)
    return None if found is None else found[0].outlined(found[1])


def _find(survey: Survey) -> tuple[FoundBoxes, YOLOFormat] | None:
    images = pictures(survey)
    texts = survey.having((".txt",))
    matched = pair(texts, images)
    known = _yaml(survey)
    folders = _label_folders(survey, [file for file, found in matched.items() if found])
    labels = {file: found for file, found in matched.items() if found and folder_of(file) in folders}
    if not labels:
        return None
    by_image = {found[0]: file for file, found in labels.items() if len(found) == 1}
    notes = []
    several = [file for file, found in labels.items() if len(found) > 1]
    if several:
        notes.append(f"{len(several)} text files fit several images and cannot be used, such as {several[0]}")
    # An image without a text file has no objects, in the folders where others have one.
    annotated = {folder_of(image) for image in by_image}
    samples = [Sample(image, by_image.get(image)) for image in images if folder_of(image) in annotated]
    # Such a file without an image is reported when it is read.
    lost = [file for file, found in matched.items() if not found and folder_of(file) in folders]
    samples += [Sample(None, file) for file in lost if _is_label(survey, file)]
    empty = [sample.image for sample in samples if sample.annotation is None]
    if empty:
        notes.append(f"{len(empty)} images have no text file, so no objects, such as {empty[0]}")
    alone = [image for image in images if folder_of(image) not in annotated]
    if alone:
        notes.append(f"{len(alone)} images in folders without annotations are left out, such as {alone[0]}")
    parts, rest = _parts(survey, samples, labels, known)
    names, source = _class_names(survey, known, labels)
    title = f"YOLO: .txt in {main_folders(sorted(labels))}; images in {main_folders([s.file for s in samples])}"
    form = YOLOFormat(names, _keypoints(known))
    return FoundBoxes("yolo", survey, parts, form, f"{title}; classes from {source}", [*notes, *rest]), form


def _label_folders(survey: Survey, texts: Sequence[str]) -> set[str]:
    """The folders in which text files have lines of YOLO."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for file in texts:
        by_folder[folder_of(file)].append(file)
    return {folder for folder, files in by_folder.items() if any(_is_label(survey, file) for file in spread(files))}


def _is_label(survey: Survey, file: str) -> bool:
    """Whether a text file has lines of YOLO; an empty one may be of any kind."""
    try:
        lines = [line for line in read_lines(survey.path(file)) if line]
    except (OSError, ValueError):
        return False
    good = 0
    for line in lines[:10]:
        try:
            good += max(map(abs, read_line(line).corners)) <= 2
        except ValueError:
            continue
    return 2 * good > len(lines[:10])


def _yaml(survey: Survey) -> dict[str, Any]:
    """The content of the `data.yaml`: the mapping with `names` that is nearest to the root; empty without one."""
    found = []
    for file in survey.having((".yaml", ".yml")):
        try:
            content = yaml.safe_load(read_text(survey.path(file)))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(content, dict) and isinstance(content.get("names"), dict | list):
            found.append((not any(split in content for split in _YAML_SPLITS), file.count("/"), file, content))
    if not found:
        return {}
    _, _, file, content = min(found, key=lambda each: each[:3])
    return {**content, "file": file}


def _parts(
    survey: Survey, samples: Sequence[Sample], labels: Mapping[str, Any], known: Mapping[str, Any]
) -> tuple[dict[str, list[Sample]], list[str]]:
    """The splits that `data.yaml` names, where its paths are there; otherwise those of folders and lists."""
    parts: dict[str, list[Sample]] = {}
    for key, split in _YAML_SPLITS.items():
        places = known.get(key) or ()
        chosen: dict[Sample, None] = {}
        for place in [places] if isinstance(places, str) else places:
            chosen |= dict.fromkeys(_in_place(survey, samples, str(place), labels))
        if chosen and not any(set(chosen) == set(other) for other in parts.values()):
            parts[split] = list(chosen)
    if len(parts) < 2:
        return assign(samples, survey, labels=labels)
    used = set().union(*parts.values())
    rest = [sample for sample in samples if sample not in used]
    notes = [f"{len(rest)} images are left out, in no split of {known['file']}, such as {rest[0].file}"] if rest else []
    return parts, notes


def _in_place(survey: Survey, samples: Sequence[Sample], place: str, labels: Mapping[str, Any]) -> list[Sample]:
    """The samples in a folder or list of `data.yaml`, whose path may be relative to anything."""
    parts = [part for part in place.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if parts and parts[-1].endswith(".txt"):
        lists = read_lists(survey, samples, labels)
        return lists.get(stem_of(parts[-1]), [])
    while parts:
        folder = "/".join(parts)
        found = [s for s in samples if s.image is not None and f"/{folder_of(s.image)}/".find(f"/{folder}/") >= 0]
        if found:
            return found
        parts = parts[1:]
    return []


def _class_names(survey: Survey, known: Mapping[str, Any], labels: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The names of the classes, and where they are from."""
    names = known.get("names")
    if isinstance(names, dict):
        numbers = {int(key): str(name) for key, name in names.items() if str(key).isdigit()}
        names = [numbers.get(number, f"class_{number}") for number in range(max(numbers, default=-1) + 1)]
    if names:
        return _distinct(list(map(str, names))), str(known["file"])
    files = [file for file in survey.having((".txt", ".names", ".labels")) if file not in labels]
    for file in sorted(files, key=lambda file: (file.count("/"), file)):
        if any(stem_of(file).lower().startswith(name) for name in _NAMES):
            try:
                lines = [line for line in read_lines(survey.path(file)) if line]
            except (OSError, ValueError):
                continue
            if lines:
                return _distinct(lines), file
    highest = max((_highest(survey, file) for file in labels), default=-1)
    numbered = tuple(f"class_{number}" for number in range(highest + 1))
    return numbered, "the numbers in the annotations, since there is no list of names"


def _distinct(names: list[str]) -> tuple[str, ...]:
    """The names, with a number after one that comes again."""
    return tuple(name if names.index(name) == i else f"{name}_{i}" for i, name in enumerate(names))


def _highest(survey: Survey, file: str) -> int:
    """The highest class in a file; -1 without one."""
    highest = -1
    try:
        for line in read_lines(survey.path(file)):
            highest = max(highest, read_line(line).label) if line else highest
    except (OSError, ValueError):
        pass  # it is reported when it is read as a sample
    return highest


def _keypoints(known: Mapping[str, Any]) -> int:
    """The number of values after a box that are keypoints, from `kpt_shape`."""
    shape = known.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(number, int) for number in shape):
        return int(shape[0] * shape[1])
    return 0
