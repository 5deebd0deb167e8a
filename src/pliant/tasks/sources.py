"""A folder of data in the layout that it has: its splits, those that were made of it, and their data sets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pliant.data import DataError, ImageSet
from pliant.data.copies import group_copies
from pliant.data.discovery import Found, Survey, find_among
from pliant.data.image_set import some
from pliant.tasks.layouts import Layout
from pliant.tasks.stratification import Group, stratify


@dataclass(frozen=True)
class MadeSplit:
    """A split that Pliant made.

    Attributes:
        of: the split of the data that it is a part of.
        images: its images, relative to the folder of the data.
    """

    of: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A folder of data.

    Attributes:
        root: the folder in which the layout begins.
        name: name of the layout, as in the `layout` of recipes.
        layout: the layout.
        found: the data set that was found, if the folder is not in the layout's own form.
    """

    root: Path
    name: str
    layout: Layout
    found: Found | None = None

    @property
    def title(self) -> str:
        """What the folder is, for people."""
        return self.layout.title if self.found is None else self.found.title

    @property
    def notes(self) -> list[str]:
        """Sentences about what is left out, and about what was assumed."""
        return [] if self.found is None else self.found.notes

    def splits(self) -> list[str]:
        """The names of the data's own splits."""
        return self.layout.splits(self.root) if self.found is None else self.found.splits()

    def has(self, split: str) -> bool:
        """Whether the data have a split."""
        return self.layout.has(self.root, split) if self.found is None else split in self.found.splits()

    def images(self, split: str) -> list[Path]:
        """The image files of a split; none if the layout cannot list them."""
        if self.found is not None:
            return self.found.images(split)
        return [] if self.layout.images is None else self.layout.images(self.root, split)

    def open(
        self, split: str, *, made: Mapping[str, MadeSplit] | None = None, training: bool, **options: Any
    ) -> ImageSet:
        """Open a split; see `Task.open`.

        Raises:
            DataError: If the split is missing or holds no usable image.
        """
        part = (made or {}).get(split)
        if part is None:
            return self._open(split, training=training, **options)
        listed = [self.root / image for image in part.images]
        dataset = self._open(part.of, training=training, only=listed, **options)
        there = set(self.images(part.of))
        for image in listed:
            if image not in there and not image.is_file():
                dataset.problems.report(image, "missing image", f"it belongs to the {split} split that was made")
        return dataset

    def _open(self, split: str, *, training: bool, **options: Any) -> ImageSet:
        if self.found is None:
            return self.layout.open(self.root, split, training=training, **options)
        return self.found.open(split, **options, **self.layout.found_options(training))


class Division(NamedTuple):
    """Parts of a split that Pliant made, by name, and sentences about how."""

    parts: dict[str, MadeSplit]
    notes: tuple[str, ...]


def make_splits(
    source: Source, of: str, fractions: Mapping[str, float], rest: str, seed: int, known: ImageSet | None
) -> Division:
    """Parts of a split by chance, the same whenever they are made; none if one of them would have no image.

    Every class is in all parts in the same proportion where that is possible, and copies of an image are in one part.
    Images are taken in the order of a digest of the seed and their path.

    Args:
        source: the data.
        of: the split to divide.
        fractions: the fraction of the images that each part has.
        rest: name of the part with all other images.
        seed: another seed gives other parts.
        known: the split as a data set, which knows the classes in each image; None if it cannot be opened.
    """
    images = list(dict.fromkeys(source.images(of)))
    if not all(round(fraction * len(images)) for fraction in fractions.values()):
        return Division({}, ())
    names = {image: image.relative_to(source.root).as_posix() for image in images}
    groups = group_copies(sorted(images, key=lambda image: _digest(seed, names[image])))
    there = {} if known is None else {path: known.classes_in(index) or {-1} for index, path in enumerate(known.paths)}
    classes = [frozenset().union(*(there.get(image, ()) for image in group)) for group in groups]
    wanted = {rest: 1 - sum(fractions.values())} | {part: fractions[part] for part in reversed(list(fractions))}
    chosen = stratify([Group(len(group), c) for group, c in zip(groups, classes, strict=True)], wanted)
    parts: dict[str, list[str]] = {part: [] for part in (*fractions, rest)}
    for part, group in zip(chosen, groups, strict=True):
        parts[part] += [names[image] for image in group]
    if not all(parts.values()):
        return Division({}, ())
    notes = [*_said_classes(known, groups, classes, chosen), *_said_copies(groups, names)]
    return Division({part: MadeSplit(of, tuple(sorted(each))) for part, each in parts.items()}, tuple(notes))


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _said_classes(
    known: ImageSet | None, groups: Sequence[Sequence[Path]], classes: Sequence[frozenset[int]], chosen: Sequence[str]
) -> list[str]:
    """A sentence about the classes in the parts, which names those that are in too few images to be in all."""
    if known is None:
        return []
    images: Counter[int] = Counter()
    rare = []
    for group, there in zip(groups, classes, strict=True):
        images.update(dict.fromkeys(there, len(group)))
    for number, name in enumerate(known.classes):
        within = {part for part, there in zip(chosen, classes, strict=True) if number in there}
        without = [part for part in dict.fromkeys(sorted(chosen)) if part not in within]
        if within and without:
            rare.append(f"{name} (in {images[number]}, not in {' and '.join(without)})")
    but = f", but for classes in few images: {some(rare, 8)}" if rare else ""
    return [f"Every class is in all parts, in about the same proportion{but}."]


def _said_copies(groups: Sequence[Sequence[Path]], names: Mapping[Path, str]) -> list[str]:
    several = [group for group in groups if len(group) > 1]
    if not several:
        return []
    example = ", ".join(names[image] for image in several[0][:2])
    return [
        f"{sum(map(len, several)) - len(several)} images are copies of others (the same bytes, or Roboflow's versions "
        f"of one image), such as {example}: copies are in one part."
    ]


def find_source(layouts: Mapping[str, Layout], root: Path, wanted: Sequence[str] = ()) -> Source:
    """The layout of a folder.

    The layouts' own forms come first, and of these the one that has a split that is asked for. Then the files
    themselves show what they are; of several kinds of annotations, the one for most images is used.

    Args:
        layouts: the layouts that may be, by name.
        root: the folder.
        wanted: names of splits.

    Raises:
        DataError: if the folder is in none of the layouts; the message says what is in it, and what would fit.
    """
    require_folder(root)
    own = [
        Source(place, name, layout)
        for place in _places(root)
        for name, layout in layouts.items()
        if layout.fits is not None and layout.fits(place)
    ]
    if own:
        return next((source for source in own if any(source.has(split) for split in wanted)), own[0])
    survey = Survey.of(root)
    found = find_among({name: layout.find for name, layout in layouts.items() if layout.find is not None}, survey)
    if found is not None:
        return Source(root, found.family, layouts[found.family], found)
    if len(layouts) == 1:
        ((name, layout),) = layouts.items()
        if layout.find is None:
            return Source(root, name, layout)
    raise DataError(
        root, "\n".join(["no layout of data is recognised here. Found:", *survey.seen(), *fitting(layouts)])
    )


def require_folder(root: Path) -> None:
    """Check that there is a folder of data.

    Raises:
        DataError: if there is none.
    """
    if not root.is_dir():
        kind = "is a file; unpack it, and give the folder" if root.is_file() else "there is no such folder of data"
        raise DataError(root, kind)


def fitting(layouts: Mapping[str, Layout]) -> list[str]:
    """What would fit, as lines."""
    titles = [
        f"layout={name}: {layout.title}{', or in other folders' if layout.fits and layout.find else ''}"
        for name, layout in layouts.items()
    ]
    return ["", "What would fit:", *titles]


def _places(root: Path) -> list[Path]:
    """The folder, and the only folder in it, and so on: archives often have one around their content."""
    places = [root]
    while len(places) < 4:
        inner = [each for each in places[-1].iterdir() if each.is_dir() and not each.name.startswith((".", "__"))]
        if len(inner) != 1:
            break
        places.append(inner[0])
    return places
