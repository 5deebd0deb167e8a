"""Find files of a data set by the names in its lists and annotations, and read their text."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Callable, Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

T = TypeVar("T")

# UTF-32 first, since its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def relative_path(name: str) -> PurePosixPath:
    """A path written in a data set as a relative path below the folder it is joined to.

    Raises:
        ValueError: if it is empty or absolute, contains `..` or a null byte, or cannot be encoded.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) is not None
    if leaves or not path.parts or "\0" in name or not is_text(name):
        raise ValueError(f"{name!r} is not a path inside the data set")
    return path


class ReadOnce(Generic[T]):
    """A function that reads a file, called once for each path.

    Args:
        read: reads a file, or raises `OSError` or `ValueError`.
    """

    def __init__(self, read: Callable[[Path], T]) -> None:
        self._read = read
        self._known: dict[Path, T | ValueError] = {}

    def __call__(self, path: Path) -> T:
        """The content of a file.

        Raises:
            ValueError: if `read` raised an error, with its text.
        """
        if path not in self._known:
            try:
                self._known[path] = self._read(path)
            except (OSError, ValueError) as error:
                self._known[path] = ValueError(str(error))
        found = self._known[path]
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        return found


def is_text(name: str) -> bool:
    """Whether `name` can be encoded in UTF-8, unlike half a surrogate pair, which JSON can contain."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class FileFinder:
    """Finds files by name, whatever the case of their suffixes. Each folder is listed once.

    An exact match of the name comes first, then its other Unicode form (macOS writes an accent as a separate
    character), then another case if a single file matches.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
        """The file with the relative path `stem` and one of `suffixes` (in lower case), the first that exists."""
        place, name = _split(folder / stem)
        endings = {each: os.path.splitext(each) for each in self._similar(place, name)}
        for same in (str, _composed, _folded):
            found = [
                (suffixes.index(ending.lower()), each)
                for each, (base, ending) in endings.items()
                if ending.lower() in suffixes and same(base) == same(name)
            ]
            if found and (same is not _folded or len({endings[each][0] for _, each in found}) == 1):
                files = [place / each for _, each in sorted(found)]
                return next((path for path in files if os.path.isfile(path)), None)
        return None

    def find_named(self, folder: Path, name: str) -> Path | None:
        """The file with the relative path `name`, suffix included."""
        if os.path.isfile(folder / name):
            return folder / name
        stem, ending = os.path.splitext(name)
        return self.find(folder, stem, (ending.lower(),))

    def beside(self, folder: Path, stem: str) -> str:
        """The files with a name like `stem`, as the end of a sentence; empty if there are none."""
        place, name = _split(folder / stem)
        there = sorted(self._similar(place, name))
        links = [each for each in there if os.path.islink(place / each) and not os.path.exists(place / each)]
        if links:
            return f"; {links[0]} is a link to {os.readlink(place / links[0])}, which is not there"
        return f"; there is {', '.join(there[:5])}" if there else ""

    def _similar(self, place: Path, name: str) -> list[str]:
        """The files of a folder whose names differ from `name` in suffix, Unicode form and case only."""
        if place not in self._listed:
            listed: dict[str, list[str]] = {}
            self._listed[place] = listed
            try:
                names = os.listdir(place)
            except (OSError, ValueError):
                names = []
            for each in names:
                listed.setdefault(_folded(os.path.splitext(each)[0]), []).append(each)
        return self._listed[place].get(_folded(name), [])


def _split(path: Path) -> tuple[Path, str]:
    return path.parent, path.name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(name).casefold()


def files_below(folder: Path, suffixes: Container[str], leave_out: Path | None = None) -> tuple[list[Path], list[Path]]:
    """The files in a folder and in all folders below it, sorted folder by folder.

    Links are followed, and each folder is visited once. Files and folders whose names begin with a dot are ignored.

    Args:
        folder: folder to begin with.
        suffixes: suffixes in lower case.
        leave_out: folder to skip.

    Returns:
        The files with one of `suffixes`, and the other files.
    """
    found: tuple[list[Path], list[Path]] = ([], [])
    visited = set() if leave_out is None else {os.path.realpath(leave_out)} - {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            found[os.path.splitext(name)[1].lower() not in suffixes].append(Path(place, name))
    return found


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has another encoding.
    """
    content = path.read_bytes()
    text = decode_marked(content)
    if isinstance(text, str):
        return text
    try:
        decoded = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"expected UTF-8, got the byte 0x{content[error.start]:02x} in line {line}") from error
    if "\0" in decoded:
        raise ValueError("expected UTF-8, got zero bytes, as UTF-16 without a byte order mark has them")
    return decoded


def decode_marked(content: bytes) -> str | bytes:
    """Decode `content` if it begins with a byte order mark; otherwise return it unchanged.

    Raises:
        ValueError: if it is not in the encoding of its mark.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                name = encoding.removesuffix("-sig").upper()
                raise ValueError(
                    f"it has the byte order mark of {name}, but is not in {name}: {error.reason}"
                ) from error
    return content


def read_lines(path: Path) -> list[str]:
    """The lines of a text file with any line endings, stripped of whitespace.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has another encoding, see `read_text`.
    """
    return [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path))]
