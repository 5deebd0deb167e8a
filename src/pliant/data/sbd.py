"""SBD, the Semantic Boundaries Dataset: masks for VOC's images beyond the 2913 that VOC itself has."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from torchvision.datasets import SBDataset

from pliant.data.images import UnreadableFileError, relative_path
from pliant.data.problems import DataError

_MOST_BYTES = 2**27  # of a file of cls once it is decompressed; SBD's largest have a quarter of a million
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
        if not path.is_file():
            raise ValueError("it is no file")
        _require_no_bomb(path.read_bytes())
        mask = loadmat(path, variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0]
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"expected ids, uint8 [H, W], got {mask.dtype} {list(mask.shape)}")
    except Exception as error:  # whatever a damaged file makes of the parser
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableFileError(path, f"no mask of SBD: {reason}") from error
    return np.array(mask)


def _require_no_bomb(content: bytes) -> None:
    """Raise ValueError if compressed elements (type 15 of MATLAB 5's format) hold more than `_MOST_BYTES`."""
    order = ">" if content[126:128] == b"MI" else "<"
    position, total = 128, 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        position += 8
        if kind == 15:
            total += len(zlib.decompressobj().decompress(content[position : position + size], _MOST_BYTES + 1))
        if total > _MOST_BYTES:
            raise ValueError(f"it decompresses to more than {_MOST_BYTES} bytes")
        position += size
