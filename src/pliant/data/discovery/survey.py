"""What a folder holds: every file by its relative path, and counts of them as text."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pliant.data.files import files_below
from pliant.data.images import IMAGE_SUFFIXES
from pliant.data.problems import DataError
from pliant.outputs import LIST

_JUNK = {"__MACOSX"}
_MOST_FOLDERS = 12


@dataclass(frozen=True)
class Survey:
    """The files in a folder and all folders below it.

    Names that begin with a dot are ignored, and so is what macOS adds to archives, and folders that Pliant wrote.

    Attributes:
        root: the folder.
        files: paths relative to `root`, with `/` between folders, sorted folder by folder.
    """

    root: Path
    files: tuple[str, ...]
    _by_suffix: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list), repr=False)

    def __post_init__(self) -> None:
        for file in self.files:
            self._by_suffix[suffix_of(file)].append(file)

    @classmethod
    def of(cls, root: Path) -> Survey:
        """Survey a folder.

        Raises:
            DataError: if there is no such folder.
        """
        if not root.is_dir():
            raise DataError(root, "there is no such folder of data")
        found = [path.relative_to(root).as_posix() for path in files_below(root, ())[1]]
        own = {folder for folder in set(map(folder_of, found)) if folder and (root / folder / LIST).is_file()}
        return cls(root, tuple(file for file in found if not _is_junk(file, own)))

    def having(self, suffixes: Iterable[str]) -> list[str]:
        """The files with one of `suffixes`, in lower case."""
        return [file for suffix in suffixes for file in self._by_suffix.get(suffix, ())]

    @property
    def images(self) -> list[str]:
        """The files that have the suffix of an image."""
        return self.having(IMAGE_SUFFIXES)

    def path(self, file: str) -> Path:
        """The path of a file."""
        return self.root / file

    def seen(self) -> list[str]:
        """A line for each folder with files, such as `train/images/: 120 .jpg, 1 .txt`."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for file in self.files:
            counts[folder_of(file)][suffix_of(file) or "without an ending"] += 1
        lines = [
            f"{folder or '.'}/: " + ", ".join(f"{number} {suffix}" for suffix, number in each.most_common(5))
            for folder, each in sorted(counts.items())
        ]
        more = [f"and {len(lines) - _MOST_FOLDERS} more folders"] if len(lines) > _MOST_FOLDERS else []
        return (lines[:_MOST_FOLDERS] + more) or ["no files"]


def _is_junk(file: str, own: set[str]) -> bool:
    folder = folder_of(file)
    parents = {"/".join(folder.split("/")[:depth]) for depth in range(1, folder.count("/") + 2)}
    return not _JUNK.isdisjoint(folder.split("/")) or not own.isdisjoint(parents)


def folder_of(file: str) -> str:
    """The folder of a relative path; empty for the root."""
    return file.rpartition("/")[0]


def stem_of(file: str) -> str:
    """The name of a file without its last suffix."""
    return os.path.splitext(file.rpartition("/")[2])[0]


def suffix_of(file: str) -> str:
    """The last suffix of a file in lower case, with its dot."""
    return os.path.splitext(file)[1].lower()
