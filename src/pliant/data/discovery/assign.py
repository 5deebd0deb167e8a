"""The splits of samples that were found in a folder, from its folders or its lists."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pliant.data.discovery.pairing import Names
from pliant.data.discovery.split_names import WHOLE, by_list, split_of_path, split_word
from pliant.data.discovery.survey import Survey, folder_of, stem_of
from pliant.data.files import read_lines

_TRIED = 200  # lines of a file that show whether it is a list of images


class Sample(NamedTuple):
    """An image with its annotation, as relative paths; None for one that is missing."""

    image: str | None
    annotation: str | None

    @property
    def file(self) -> str:
        """The image, or the annotation without one."""
        return self.image or self.annotation or ""

    def split(self, skipped: int = 0) -> str | None:
        """The split that the folders name, without the first `skipped` of them."""
        words = (split_of_path(file, skipped) for file in (self.image, self.annotation) if file is not None)
        return next((word for word in words if word is not None), None)


def assign(
    samples: Sequence[Sample], survey: Survey, *, labels: Collection[str] = ()
) -> tuple[dict[str, list[Sample]], list[str]]:
    """The samples of each split, and sentences about what is left out.

    Folders decide if they name splits, otherwise lists of image names. Without any of them, all samples are in one
    split, `WHOLE`. A folder around all samples is no split, whatever its name.

    Args:
        samples: all samples.
        survey: the folder.
        labels: text files that are annotations, so no lists.
    """
    around = _around([file for sample in samples for file in sample if file is not None])
    words = {sample.split(around) for sample in samples} - {None}
    lists = {} if len(words) > 1 else read_lists(survey, samples, labels)
    if lists:
        listed = set().union(*lists.values())
        rest = [sample for sample in samples if sample not in listed]
        kept = {word: list(chosen) for word, chosen in lists.items()}
        return kept, _said(rest, f"in none of the lists {', '.join(sorted(kept))}")
    if not words:
        return {WHOLE: list(samples)}, []
    parts: dict[str, list[Sample]] = defaultdict(list)
    rest = []
    for sample in samples:
        word = sample.split(around)
        (rest if word is None else parts[word]).append(sample)
    if sum(map(len, parts.values())) < len(rest):  # a word in the name of one of many folders means nothing
        return {WHOLE: list(samples)}, []
    return dict(parts), _said(rest, f"in no folder of a split ({', '.join(sorted(parts))})")


def _around(files: Sequence[str]) -> int:
    """The number of folders that all files have in common."""
    if not files:
        return 0
    first, last = (file.split("/")[:-1] for file in (min(files), max(files)))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def read_lists(survey: Survey, samples: Sequence[Sample], labels: Collection[str] = ()) -> dict[str, list[Sample]]:
    """The samples of each text file that lists images and is named after a split."""
    by_image = {sample.image: sample for sample in samples if sample.image is not None}
    names = Names(by_image)
    taken = set(labels)
    files = [file for file in survey.having((".txt", ".lst")) if file not in taken and split_word(stem_of(file))]
    found: dict[str, list[Sample]] = {}
    for file in files:
        images = _listed(survey, file, names)
        if images:
            found[file] = [by_image[image] for image in images]
    return {word: found[file] for file, word in by_list({file: len(chosen) for file, chosen in found.items()}).items()}


def _listed(survey: Survey, file: str, names: Names) -> list[str]:
    """The images that a file lists; none if it is no list of images."""
    try:
        lines = [line for line in read_lines(survey.path(file)) if line and not line.startswith("#")]
    except (OSError, ValueError):
        return []
    tried = lines[:_TRIED]
    if 2 * sum(bool(_meant(line, file, names)) for line in tried) < max(1, len(tried)):
        return []
    found = (_meant(line, file, names) for line in lines)
    return list(dict.fromkeys(images[0] for images in found if len(images) == 1))


def _meant(line: str, file: str, names: Names) -> list[str]:
    """The images that a line names: the complete line, or its first column."""
    return names.find(line, file) or names.find(line.split()[0].rstrip(","), file)


def main_folders(files: Sequence[str], most: int = 3) -> str:
    """The folders that hold most of some files, as text."""
    counts = Counter(folder_of(file) or "." for file in files)
    named = ", ".join(f"{folder}/" for folder, _ in counts.most_common(most))
    return named + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _said(rest: Sequence[Sample], why: str) -> list[str]:
    if not rest:
        return []
    images = "1 image is" if len(rest) == 1 else f"{len(rest)} images are"
    return [f"{images} left out, {why}, such as {rest[0].file}"]
