"""Which image belongs to which annotation: by their names and folders, wherever both are."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote

from pliant.data.discovery.split_names import split_of_path
from pliant.data.discovery.survey import folder_of, stem_of, suffix_of
from pliant.data.images import IMAGE_SUFFIXES


class Names:
    """Finds files by a name that was written somewhere: complete, relative to any folder, or without its suffix.

    Args:
        files: relative paths of the files that can be found.
        key: function of a name without its suffix; files are found by what it returns.
    """

    def __init__(self, files: Iterable[str], key: Callable[[str], str] = str) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for file in files:
            self._by_name[_folded(file.rpartition("/")[2])].append(file)
            self._by_stem[_folded(key(stem_of(file)))].append(file)

    def find(self, written: str, near: str = "") -> list[str]:
        """The files that a written name may mean; a single one if it is clear.

        Of several files, those whose folders agree with the written ones come first, then those that are closest to
        `near`: of the same split, and in the most folders with it.

        Args:
            written: the name, perhaps with folders, which need not exist.
            near: relative path of the file that contains the name, or is named like it.
        """
        parts = [part for part in re.split(r"[/\\]+", written.strip()) if part not in ("", ".", "..")]
        if not parts:
            return []
        name = _folded(parts[-1])
        found = self._by_name.get(name) or self._by_stem.get(name)
        if not found and suffix_of(name) in IMAGE_SUFFIXES:
            found = self._by_stem.get(_folded(stem_of(name)))
        if not found and "%" in written:  # written as in an address: "photo%201.jpg"
            return self.find(unquote(written), near) if unquote(written) != written else []
        if not found or len(found) == 1:
            return list(found or ())
        folders = [_folded(part) for part in parts[:-1]]
        return _best(found, folders, near)


def pair(annotations: Sequence[str], images: Iterable[str]) -> dict[str, list[str]]:
    """The images of each annotation with its name, as in `Names.find`; `1.jpg.xml` belongs to `1.jpg` too."""
    names = Names(images)
    found = {}
    for file in annotations:
        stem = stem_of(file)
        found[file] = names.find(stem, file)
    return found


def _best(found: list[str], folders: list[str], near: str) -> list[str]:
    split, place = split_of_path(near), near.split("/")[:-1]
    ranks: dict[tuple[int, bool, int, int], list[str]] = defaultdict(list)
    for file in found:
        parts = file.split("/")[:-1]
        ends = _common([_folded(part) for part in reversed(parts)], folders[::-1])
        same = split is not None and split_of_path(file) == split
        shared = _common(parts, place)
        shared += _common(parts[shared:][::-1], place[shared:][::-1])
        ranks[ends, same, shared, -len(parts)].append(file)
    best = ranks[max(ranks)]
    if len({(folder_of(file), stem_of(file)) for file in best}) == 1:  # a.jpg and a.png: as everywhere, by suffix
        return [min(best, key=lambda file: IMAGE_SUFFIXES.index(suffix_of(file)))]
    return best


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of equal items at the beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
