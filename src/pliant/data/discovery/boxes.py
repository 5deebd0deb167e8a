"""Find boxes and outlines that are in one file for each image: VOC's XML, LabelMe's JSON, and YOLO's text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pliant.data.detection_set import Boxes
from pliant.data.discovery.assign import Sample, assign, main_folders
from pliant.data.discovery.found import Found
from pliant.data.discovery.masks import pictures
from pliant.data.discovery.pairing import Names, pair
from pliant.data.discovery.survey import Survey, suffix_of
from pliant.data.drawn_set import ListedOutlines, OutlineFormat
from pliant.data.files import ReadOnce
from pliant.data.image_set import ImageSet
from pliant.data.labelme import LabelMeFormat
from pliant.data.listed import BoxFormat, ListedDetection
from pliant.data.problems import ProblemLog
from pliant.data.voc import read_boxes
from pliant.data.voc_layout import read_annotation

T = TypeVar("T")

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
        return ListedDetection(self.root, self.files(split), self._form, **options)

    def files(self, split: str) -> list[tuple[Path | None, Path | None]]:
        """The image and annotation of each sample of a split."""
        return [
            (
                None if sample.image is None else self.root / sample.image,
                None if sample.annotation is None else self.root / sample.annotation,
            )
            for sample in self._parts[split]
        ]

    def outlined(self, form: OutlineFormat) -> FoundOutlines | None:
        """The same data with masks that are drawn from outlines; None if the annotations have boxes alone.

        Args:
            form: the format of the files, which has outlines as well.
        """
        files = [annotation for split in self._parts for _, annotation in self.files(split) if annotation is not None]
        if not any(form.outlined(file) for file in spread(files)):
            return None
        return FoundOutlines(self, form)


class FoundOutlines(Found):
    """Outlines in one file for each image.

    Args:
        boxes: the same files, as boxes.
        form: format of the files.
    """

    def __init__(self, boxes: FoundBoxes, form: OutlineFormat) -> None:
        super().__init__(boxes.root, f"{boxes.title}; masks drawn from outlines", boxes.notes)
        self.family = boxes.family  # type: ignore[misc]
        self._boxes = boxes
        self._form = form

    def splits(self) -> list[str]:
        """See `Found`."""
        return self._boxes.splits()

    def images(self, split: str) -> list[Path]:
        """See `Found`."""
        return self._boxes.images(split)

    def read(self, split: str, **options: Any) -> ImageSet:
        """See `Found`."""
        return ListedOutlines(self.root, self._boxes.files(split), self._form, **options)


class _NamedFormat(BoxFormat, Protocol):
    """A format whose files name their image."""

    def filename(self, path: Path) -> str:
        """The name of its image that a file holds.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is not of this format.
        """


class VOCFormat:
    """Boxes from VOC's XML files. Each file is read once.

    Args:
        files: all files, whose names of classes are used.
    """

    def __init__(self, files: Collection[Path]) -> None:
        self._files = files
        self.annotation = ReadOnce(read_annotation)

    def classes(self) -> tuple[str, ...]:
        """The names in all files, sorted."""
        found = set()
        for path in self._files:
            try:
                found |= {item.name for item in self.annotation(path).objects if item.name}
            except (OSError, ValueError):
                continue  # it is reported when it is read as a sample
        return tuple(sorted(found))

    def filename(self, path: Path) -> str:
        """The name of its image that a file holds; errors as those of `read_annotation`."""
        return self.annotation(path).filename

    def claimed_size(self, path: Path) -> tuple[float, float] | None:
        """See `SizeFormat`. Some tools leave the size out or write zero."""
        size = self.annotation(path).size
        return size if all(value > 0 for value in size) else None

    def boxes(self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog) -> Boxes:
        """See `BoxFormat`."""
        return read_boxes(path, self.annotation(path), size, labels, problems)


def find_voc(survey: Survey) -> FoundBoxes | None:
    """Boxes in VOC's XML files, each named like its image or with its name inside, in any folders."""
    files = survey.having((".xml",))
    return _find("voc", "VOC annotations", survey, files, VOCFormat([survey.path(file) for file in files]))


def find_labelme(survey: Survey) -> FoundBoxes | None:
    """Boxes in LabelMe's JSON files, each named like its image or with its name inside, in any folders."""
    found = _find_labelme(survey)
    return None if found is None else found[0]


def find_labelme_outlines(survey: Survey) -> FoundOutlines | None:
    """Outlines in LabelMe's JSON files."""
    found = _find_labelme(survey)
    return None if found is None else found[0].outlined(found[1])


def _find_labelme(survey: Survey) -> tuple[FoundBoxes, LabelMeFormat] | None:
    files = [file for file in survey.having((".json",)) if _has_shapes(survey.path(file))]
    form = LabelMeFormat([survey.path(file) for file in files])
    found = _find("labelme", "LabelMe annotations", survey, files, form)
    return None if found is None else (found, form)


def _has_shapes(path: Path) -> bool:
    """Whether a file may be LabelMe's: a look for a word, since other JSON files can be large."""
    try:
        return b'"shapes"' in path.read_bytes()
    except OSError:
        return False


def _find(family: str, title: str, survey: Survey, files: Sequence[str], form: _NamedFormat) -> FoundBoxes | None:
    """The data of files that name their image, or are named like it."""
    if not any(_reads(form, survey.path(file)) for file in spread(files)):
        return None
    images = pictures(survey)
    matched = pair(files, images)
    names = Names(images)
    for file in [file for file, found in matched.items() if not found]:
        if _reads(form, survey.path(file)):
            matched[file] = names.find(form.filename(survey.path(file)), file)
    samples, notes = _samples(matched)
    used = {sample.image for sample in samples if sample.image is not None}
    alone = [image for image in images if image not in used]
    parts, rest = assign(samples, survey)
    if alone:
        notes.append(f"{_images(len(alone))} no annotation and {_is(len(alone))} left out, such as {alone[0]}")
    where = f"{suffix_of(files[0])} in {main_folders(files)}; images in {main_folders(sorted(used))}"
    return FoundBoxes(family, survey, parts, form, f"{title}: {where}", [*notes, *rest])


def _samples(matched: Mapping[str, Sequence[str]]) -> tuple[list[Sample], list[str]]:
    """A sample for each annotation, and sentences about those whose image is not clear."""
    samples = [Sample(found[0] if len(found) == 1 else None, file) for file, found in matched.items()]
    several = {file: found for file, found in matched.items() if len(found) > 1}
    if not several:
        return samples, []
    file, found = next(iter(several.items()))
    one = "1 annotation fits" if len(several) == 1 else f"{len(several)} annotations fit"
    return samples, [f"{one} several images and cannot be used, such as {file}: {', '.join(found[:3])}"]


def _reads(form: _NamedFormat, path: Path) -> bool:
    try:
        form.filename(path)
    except (OSError, ValueError):
        return False
    return True


def spread(files: Sequence[T], most: int = _TRIED) -> list[T]:
    """Some of the files, from all folders alike."""
    return list(files[:: max(1, len(files) // most)][: most + 1])


def _images(number: int) -> str:
    return f"{number} image{'s have' if number > 1 else ' has'}"


def _is(number: int) -> str:
    return "are" if number > 1 else "is"
