"""A data set as it was found in a folder, whatever the names of its folders."""

from __future__ import annotations

import abc
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pliant.data.image_set import ImageSet, Transforms
from pliant.data.problems import DataError


class Found(abc.ABC):
    """A data set that was found in a folder, see `pliant.data.discover`.

    Args:
        root: the folder.
        title: what was found, for people.
        notes: sentences about what is left out, and about what was assumed.

    Attributes:
        family: the name of its format, as in `layout` of recipes.
        root, title, notes: the arguments.
    """

    family: ClassVar[str]

    def __init__(self, root: Path, title: str, notes: Sequence[str]) -> None:
        self.root = root
        self.title = title
        self.notes = list(notes)

    @abc.abstractmethod
    def splits(self) -> list[str]:
        """The names of the splits; `split_names.WHOLE` alone if the data are not split."""

    @abc.abstractmethod
    def images(self, split: str) -> list[Path]:
        """The image files of a split."""

    @abc.abstractmethod
    def read(
        self, split: str, *, classes: Sequence[str] | None, transforms: Transforms | None, strict: bool, **options: Any
    ) -> ImageSet:
        """Open a split that exists; see `open`."""

    def open(
        self,
        split: str,
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
        **options: Any,
    ) -> ImageSet:
        """Open a split as a data set.

        Args:
            split: name of the split.
            classes: names of the classes to use, in order; None for those that are found in all splits.
            transforms: called with image and target.
            strict: raise at the first problem.
            only: the images to use; None for all.
            options: further arguments of the data set.

        Raises:
            DataError: if there is no such split or no image is usable; in strict mode at any problem.
        """
        if split not in self.splits():
            raise DataError(self.root, f"no split {split!r}; splits there: {', '.join(self.splits())}")
        return self.read(split, classes=classes, transforms=transforms, strict=strict, only=only, **options)
