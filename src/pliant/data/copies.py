"""Images that are copies of each other, so that they belong into the same split."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

# Roboflow writes each augmented version of photo.jpg as photo_jpg.rf.HASH.jpg.
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9a-z]{8,}", re.IGNORECASE)


def group_copies(images: Sequence[Path]) -> list[list[Path]]:
    """The images in groups of copies: files with the same bytes, and Roboflow's versions of one image.

    Only files of the same size are read.

    Args:
        images: the image files, each once.

    Returns:
        Groups in the order of their first images. Most consist of one image.
    """
    same: dict[object, list[Path]] = defaultdict(list)
    sizes: dict[int, list[Path]] = defaultdict(list)
    for image in images:
        version = _ROBOFLOW.fullmatch(image.stem)
        if version is not None:
            same[version.group(1)].append(image)
        try:
            sizes[image.stat().st_size].append(image)
        except OSError:
            continue  # it is reported when the data set is opened
    for size, files in sizes.items():
        for image in files if len(files) > 1 else ():
            digest = _digest(image)
            if digest is not None:
                same[size, digest].append(image)
    return _joined(images, list(same.values()))


def _joined(images: Sequence[Path], same: Sequence[Sequence[Path]]) -> list[list[Path]]:
    """The images, with those in one group that any of the lists `same` connects."""
    leader = {image: image for image in images}

    def find(image: Path) -> Path:
        while leader[image] != image:
            leader[image] = image = leader[leader[image]]
        return image

    for files in same:
        for image in files[1:]:
            leader[find(image)] = find(files[0])
    groups: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        groups[find(image)].append(image)
    return list(groups.values())


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
