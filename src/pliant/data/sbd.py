"""SBD, the Semantic Boundaries Dataset: masks for VOC images beyond VOC's own 2,913."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from pliant.data.files import FileFinder, read_lines, relative_path
from pliant.data.images import IMAGE_SUFFIXES, UnreadableFileError
from pliant.data.mat_file import read_bytes_field
from pliant.data.problems import DataError

PLACES = ("benchmark_RELEASE/dataset", "sbd", "SBD")


def find_sbd(root: Path) -> Path | None:
    """The folder that contains SBD's `img`, `cls`, `train.txt` and `val.txt`.

    It is searched for as one of `PLACES` in a data folder, and beside it if that is `VOCdevkit`.
    """
    for parent in (root, root.parent) if root.name == "VOCdevkit" else (root,):
        for place in PLACES:
            if (parent / place / "cls").is_dir():
                return parent / place
    return None


def read_sbd(folder: Path) -> list[tuple[str, Path, Path]]:
    """The name, image and mask of all of SBD, training and validation. A path that does not exist is the usual one.

    Raises:
        DataError: if a list is missing, or names a file outside the folder.
    """
    finder, found = FileFinder(), []
    for split in ("train", "val"):
        source = folder / f"{split}.txt"
        try:
            names = [str(relative_path(line)) for line in read_lines(source) if line]
        except (OSError, ValueError) as error:
            raise DataError(source, f"SBD's list cannot be read: {error}") from error
        for name in names:
            image = finder.find(folder / "img", name, IMAGE_SUFFIXES) or folder / "img" / f"{name}.jpg"
            mask = finder.find(folder / "cls", name, (".mat",)) or folder / "cls" / f"{name}.mat"
            found.append((name, image, mask))
    return found


def read_mat(path: Path) -> np.ndarray:
    """The class ids of a file of `cls`, uint8 `[H, W]`.

    Raises:
        UnreadableFileError: if it is damaged or not such a file.
    """
    try:
        return read_bytes_field(path, "GTcls", "Segmentation")
    except (OSError, ValueError, zlib.error) as error:
        raise UnreadableFileError(path, f"not a mask of SBD: {error}") from error
