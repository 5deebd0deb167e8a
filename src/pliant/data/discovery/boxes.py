"""Find boxes that are in one file for each image: VOC's XML, and YOLO's text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pliant.data.detection_set import Boxes
from pliant.data.discovery.assign import Sample, assign, main_folders
from pliant.data.discovery.found import Found
from pliant.data.discovery.masks import pictures
from pliant.data.discovery.pairing import Names, pair
from pliant.data.discovery.survey import Survey
from pliant.data.image_set import ImageSet
from pliant.data.listed import BoxFormat, ListedDetection
from pliant.data.problems import ProblemLog
from pliant.data.voc import read_boxes
from pliant.data.voc_layout import Annotation, read_annotation

_TRIED = 12  # files that show which format a folder has


class FoundBoxes(Found):
    """Boxes in one file for each image.

    Args:
        family: name of the format.
        survey: the folder.
        parts: samples of each split.
        form: format of the files.
        title, notes: see `Found`.
    """

    def __init__(
        self,
        family: str,
        survey: Survey,
        parts: Mapping[str, Sequence[Sample]],
        form: BoxFormat,
        title: str,
        notes: Sequence[str],
    ) -> None:
        super().__init__(survey.root, title, notes)
        self.family = family  # type: ignore[misc]
        self._parts = parts
        self._form = form

    def splits(self) -> list[str]:
        """See `Found`."""
        return list(self._parts)

    def images(self, split: str) -> list[Path]:
        """See `Found`."""
        return [self.root / sample.image for sample in self._parts[split] if sample.image is not None]

    def read(self, split: str, **options: Any) -> ImageSet:
        """See `Found`."""
        samples = [
            (
                None if sample.image is None else self.root / sample.image,
                None if sample.annotation is None else self.root / sample.annotation,
            )
            for sample in self._parts[split]
        ]
        return ListedDetection(self.root, samples, self._form, **options)


class VOCFormat:
    """Boxes from VOC's XML files. Each file is read once.

    Args:
        files: all files, whose names of classes are used.
    """

    def __init__(self, files: Collection[Path]) -> None:
        self._files = files
        self._known: dict[Path, Annotation | str] = {}

    def classes(self) -> tuple[str, ...]:
        """The names in all files, sorted."""
        found = set()
        for path in self._files:
            try:
                found |= {item.name for item in self.annotation(path).objects if item.name}
            except (OSError, ValueError):
                continue  # it is reported when it is read as a sample
        return tuple(sorted(found))

    def annotation(self, path: Path) -> Annotation:
        """The content of a file; errors as those of `read_annotation`."""
        if path not in self._known:
            try:
                self._known[path] = read_annotation(path)
            except (OSError, ValueError) as error:
                self._known[path] = str(error)
        found = self._known[path]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def claimed_size(self, path: Path) -> tuple[float, float] | None:
        """See `BoxFormat`. Some tools leave the size out or write zero."""
        size = self.annotation(path).size
        return size if all(value > 0 for value in size) else None

    def boxes(self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog) -> Boxes:
        """See `BoxFormat`."""
        return read_boxes(path, self.annotation(path), size, labels, problems)


def find_voc(survey: Survey) -> FoundBoxes | None:
    """Boxes in VOC's XML files, each named like its image or with its name inside, in any folders."""
    files = survey.having((".xml",))
    form = VOCFormat([survey.path(file) for file in files])
    if not any(_reads(form, survey.path(file)) for file in spread(files)):
        return None
    images = pictures(survey)
    matched = pair(files, images)
    names = Names(images)
    for file in [file for file, found in matched.items() if not found]:
        if _reads(form, survey.path(file)):
            matched[file] = names.find(form.annotation(survey.path(file)).filename, file)
    samples, notes = _samples(matched)
    used = {sample.image for sample in samples if sample.image is not None}
    alone = [image for image in images if image not in used]
    parts, rest = assign(samples, survey)
    if alone:
        notes.append(f"{_images(len(alone))} no .xml annotation and {_is(len(alone))} left out, such as {alone[0]}")
    title = f"VOC annotations: .xml in {main_folders(files)}; images in {main_folders(sorted(used))}"
    return FoundBoxes("voc", survey, parts, form, title, [*notes, *rest])


def _samples(matched: Mapping[str, Sequence[str]]) -> tuple[list[Sample], list[str]]:
    """A sample for each annotation, and sentences about those whose image is not clear."""
    samples = [Sample(found[0] if len(found) == 1 else None, file) for file, found in matched.items()]
    several = {file: found for file, found in matched.items() if len(found) > 1}
    if not several:
        return samples, []
    file, found = next(iter(several.items()))
    one = "1 annotation fits" if len(several) == 1 else f"{len(several)} annotations fit"
    return samples, [f"{one} several images and cannot be used, such as {file}: {', '.join(found[:3])}"]


def _reads(form: VOCFormat, path: Path) -> bool:
    try:
        form.annotation(path)
    except (OSError, ValueError):
        return False
    return True


def spread(files: Sequence[str], most: int = _TRIED) -> list[str]:
    """Some of the files, from all folders alike."""
    return list(files[:: max(1, len(files) // most)][: most + 1])


def _images(number: int) -> str:
    return f"{number} image{'s have' if number > 1 else ' has'}"


def _is(number: int) -> str:
    return "are" if number > 1 else "is"
