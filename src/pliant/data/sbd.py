"""SBD, the Semantic Boundaries Dataset: masks for VOC's images beyond the 2913 that VOC itself has."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from torchvision.datasets import SBDataset

from pliant.data.images import UnreadableFileError, relative_path
from pliant.data.mat_file import read_bytes_field
from pliant.data.problems import DataError

PLACES = ("benchmark_RELEASE/dataset", "sbd", "SBD")


def find_sbd(root: Path) -> Path | None:
    """The folder that holds SBD's ``img``, ``cls``, ``train.txt`` and ``val.txt``.

    It is looked for in a data folder, and beside it where that is ``VOCdevkit``, as one of `PLACES`.
    """
    for parent in (root, root.parent) if root.name == "VOCdevkit" else (root,):
        for place in PLACES:
            if (parent / place / "cls").is_dir():
                return parent / place
    return None


def read_sbd(folder: Path) -> list[tuple[str, Path, Path]]:
    """The name, image and mask of all of SBD, training and validation.

    Raises:
        DataError: If a list is missing, or names a file outside the folder.
    """
    found = []
    for split in ("train", "val"):
        try:
            listed = SBDataset(folder, split, mode="segmentation")
            for image in listed.images:
                relative_path(str(Path(image).relative_to(folder / "img")))
        except (OSError, ValueError) as error:
            raise DataError(folder / f"{split}.txt", f"SBD's list cannot be read: {error}") from error
        found += [(Path(mask).stem, Path(image), Path(mask)) for image, mask in zip(listed.images, listed.masks)]  # noqa: B905
    return found


def read_mat(path: Path) -> np.ndarray:
    """The class ids of a file of ``cls``, uint8 [H, W].

    Raises:
        UnreadableFileError: If it is damaged or no such file.
    """
    try:
        return read_bytes_field(path, "GTcls", "Segmentation")
    except (OSError, ValueError, zlib.error) as error:
        raise UnreadableFileError(path, f"no mask of SBD: {error}") from error
