"""SBD, the Semantic Boundaries Dataset: masks for VOC's images beyond the 2913 that VOC itself has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat
from torchvision.datasets import SBDataset

from pliant.data.images import UnreadableFileError
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
        DataError: If a list is missing.
    """
    found = []
    for split in ("train", "val"):
        try:
            listed = SBDataset(folder, split, mode="segmentation")
        except OSError as error:
            raise DataError(folder / f"{split}.txt", f"SBD's list cannot be read: {error}") from error
        found += [(Path(mask).stem, Path(image), Path(mask)) for image, mask in zip(listed.images, listed.masks)]  # noqa: B905
    return found


def read_mat(path: Path) -> np.ndarray:
    """The class ids of a file of ``cls``, uint8 [H, W].

    Raises:
        UnreadableFileError: If it is damaged or no such file.
    """
    try:
        mask = loadmat(path, variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0]
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"expected ids, uint8 [H, W], got {mask.dtype} {list(mask.shape)}")
    except Exception as error:  # whatever a damaged file makes of the parser
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableFileError(path, f"no mask of SBD: {reason}") from error
    return np.array(mask)
