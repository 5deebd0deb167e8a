"""Where commands write, without overwriting files that Pliant did not write.

Each folder that a command writes into contains a list, `.pliant-files`, with a digest of every file. A file may be
replaced if it is on the list and unchanged. Any other file stops the command before it writes anything. The folder of a
run is initially empty, so everything in it belongs to the training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

LIST = ".pliant-files"
_HEAD = "# Files that Pliant wrote here, each with its SHA-256. It replaces these, and no other file."
_LONGEST = 255  # bytes of a name on common file systems


class Outputs:
    """The files that a command is about to write into a folder.

    Each file appears only when it is complete, after it was added to the list.

    Args:
        folder: folder to write into; it is created with the first file.
        names: names of all files that may be written.
        inputs: files that the command reads and must not overwrite, even if Pliant wrote them.
        own: whether the folder must be empty, or one that Pliant wrote into before.
        recognised: whether the contents of an unlisted file show that an older version of Pliant wrote it.

    Raises:
        ValueError: if a file with one of these names is not Pliant's, the folder cannot be one, or `own` is set and the
            folder contains other files.
        OSError: if the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Iterable[str],
        *,
        inputs: Iterable[Path] = (),
        own: bool = False,
        recognised: Callable[[Path], bool] = lambda path: False,
    ) -> None:
        self.folder = Path(folder)
        self._recognised = recognised
        self.names = list(names)
        require_folder(self.folder)
        if own and not is_free(self.folder) and not _is_list(self.folder / LIST):
            raise ValueError(f"{self.folder} contains files that Pliant did not write; choose another folder")
        self._listed = _read(self.folder / LIST)
        self._refuse_others(self.names, [path for path in inputs if path.exists()])

    @classmethod
    def file(
        cls, path: str | Path, *, inputs: Iterable[Path] = (), recognised: Callable[[Path], bool] = lambda path: False
    ) -> Outputs:
        """A single file, in a folder that must exist."""
        path = Path(path)
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name the file to write")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
        return cls(path.parent, [path.name], inputs=inputs, recognised=recognised)

    @contextlib.contextmanager
    def writing(self, *names: str) -> Iterator[list[Path]]:
        """Yield temporary paths to write to. The files that were written are moved into place if the block succeeds.

        Raises:
            ValueError: if another file has appeared in such a place meanwhile.
            OSError: if they cannot be written.
        """
        assert set(names) <= set(self.names), f"{names} were not announced"
        self.folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=self.folder, prefix=".pliant-"))
        try:
            yield [staging / name for name in names]
            written = [name for name in names if (staging / name).is_file()]
            self._refuse_others(written, ())
            for name in written:
                with (staging / name).open("rb") as file:
                    os.fsync(file.fileno())
                self._list(name, _digest(staging / name))
                (staging / name).replace(self.folder / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def claim(self) -> None:
        """Create the folder with an empty list, which marks it as Pliant's own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LIST
        if not path.exists():
            path.write_text(f"{_HEAD}\n", encoding="ascii")
        elif not path.read_bytes().endswith(b"\n"):  # the last line was truncated by a kill
            with path.open("ab") as file:
                file.write(b"\n")

    def _is_of_old(self, path: Path) -> bool:
        return path.name not in self._listed and not path.is_symlink() and self._recognised(path)

    def _list(self, name: str, digest: str) -> None:
        digests = self._listed.setdefault(name, set())
        if digest not in digests:
            self.claim()
            with (self.folder / LIST).open("ab") as file:
                file.write(f"{digest}  {json.dumps(name)}\n".encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
            digests.add(digest)

    def _refuse_others(self, names: Sequence[str], inputs: Sequence[Path]) -> None:
        if len(set(names)) < len(names):
            raise ValueError(f"two files of one name cannot be written to {self.folder}: {', '.join(sorted(names))}")
        others = []
        for name in names:
            path = self.folder / name
            if len(os.fsencode(name)) > _LONGEST:
                raise ValueError(f"{path} cannot be written: its name is too long")
            if not os.path.lexists(path):
                continue
            if any(os.path.samefile(path, each) for each in inputs if path.exists()):
                raise ValueError(f"{path} is an input and would be overwritten; choose another place to write to")
            if not _is_listed(path, self._listed) and not self._is_of_old(path):
                others.append(path)
        if others:
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            raise ValueError(
                f"{others[0]} already exists and is left as it is{more}: Pliant did not write it, or it was changed "
                "since. Choose another place to write to, or move it away"
            )


def wrote(path: Path) -> bool:
    """Whether a file is on the list of its folder and unchanged."""
    return _is_listed(path, _read(path.parent / LIST))


def without_own(files: Sequence[Path], given: Sequence[Path]) -> tuple[list[Path], str | None]:
    """Leave out the pictures that Pliant drew itself, except those given by their own paths.

    Returns:
        The other files, and a sentence about what was left out, or None.

    Raises:
        FileNotFoundError: if there are no other files.
    """
    own = {path for path in files if path not in given and wrote(path)}
    if not own:
        return list(files), None
    said = f"ignored {len(own)} pictures that Pliant drew, such as {min(own)}"
    if len(own) == len(files):
        raise FileNotFoundError(f"there are no other images; {said}")
    return [path for path in files if path not in own], said


def is_free(folder: Path) -> bool:
    """Whether a folder does not exist or is empty. A list on its own does not count, since it is hidden."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return not any(entry.name != LIST for entry in folder.iterdir())


def unique_names(files: Sequence[Path], endings: Collection[str]) -> dict[Path, str]:
    """A name for each file: its own without the suffix, with a number if that is taken.

    No two names with any of the suffixes are equal, even on case-insensitive file systems.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        name, number = path.stem, 1
        while any(_folded(name + ending) in taken for ending in endings):
            number += 1
            name = f"{path.stem}-{number}"
        taken.update(_folded(name + ending) for ending in endings)
        names[path] = name
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def require_folder(folder: Path) -> None:
    """Raise an error if a folder cannot be created or written to."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        kind = ValueError if place == folder else NotADirectoryError
        raise kind(f"{folder} cannot be written to: {place} is a file")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    path = folder / LIST
    if os.path.lexists(path) and not _is_list(path):
        raise ValueError(f"{path} is not Pliant's list of files; choose another place to write to")


def _is_list(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().strip() == _HEAD.encode("ascii")


def _read(path: Path) -> dict[str, set[str]]:
    """The digests of each name on a list, ignoring an incomplete line."""
    found: dict[str, set[str]] = {}
    if not _is_list(path):
        return found
    for line in path.read_text(encoding="ascii", errors="replace").splitlines()[1:]:
        digest, _, name = line.partition("  ")
        with contextlib.suppress(ValueError):
            found.setdefault(str(json.loads(name)), set()).add(digest)
    return found


def _is_listed(path: Path, listed: dict[str, set[str]]) -> bool:
    if path.name not in listed or path.is_symlink() or not path.is_file():
        return False
    return _digest(path) in listed[path.name]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
