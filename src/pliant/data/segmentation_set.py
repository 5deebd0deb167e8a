"""The base of segmentation data sets: images with a mask of class ids each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torchvision import tv_tensors

from pliant.constants import IGNORE
from pliant.data.image_set import ImageSet, Transforms
from pliant.data.images import UnreadableFileError
from pliant.data.mask_values import COLOUR, MaskValues, read_values, shown
from pliant.data.problems import DataError


class ScannedMask(NamedTuple):
    """The size of a mask, its different values, and the number of pixels of each."""

    size: tuple[int, int]
    values: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, raw: np.ndarray) -> Self:
        """Count the values of a mask `[H, W]`."""
        if raw.size and raw.max() < COLOUR:
            counts = np.bincount(raw.ravel())
            values = np.flatnonzero(counts)
            pixels = counts[values]
        else:
            values, pixels = np.unique(raw, return_counts=True)
        return cls((raw.shape[0], raw.shape[1]), values, pixels)


class SegmentationSet(ImageSet):
    """Images with masks.

    A sample is `(image, mask)`: a uint8 `tv_tensors.Image` `[3, H, W]`, and a uint8 `tv_tensors.Mask` `[H, W]` of class
    ids, 255 where pixels are ignored.

    Attributes:
        classes: names of the ids 0, 1, ...
        ids: the data set's own name of each sample.
        mask_paths: mask file of each sample.
        values: what the values of the masks mean.
    """

    unit = "pixel"

    def __init__(
        self,
        root: Path,
        transforms: Transforms | None,
        strict: bool,
        only: Collection[Path] | None = None,
        values: MaskValues | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, only)
        self.ids: list[str] = []
        self.mask_paths: list[Path] = []
        self.values = MaskValues() if values is None else values
        self._scanned: dict[Path, ScannedMask | str] = {}
        self._pixels = np.zeros(256, dtype=np.int64)  # of each id, over all samples
        self._present: list[frozenset[int]] = []

    def _read_values(self, path: Path) -> np.ndarray:
        """The values of a file, int32 `[H, W]`. Raises `UnreadableFileError` if it has none."""
        return read_values(path, by_palette=self.values.by_palette)

    def _read_mask(self, path: Path) -> np.ndarray:
        """The ids of a file, uint8 `[H, W]`. Raises `UnreadableFileError` if it has none."""
        values = self._read_values(path)
        try:
            return self.values.ids(values)
        except ValueError as error:
            raise UnreadableFileError(path, str(error)) from error

    def _scan_values(self, path: Path) -> ScannedMask | str:
        """The values of a mask and their numbers of pixels; or what is wrong with it. Each file is decoded once."""
        if path not in self._scanned:
            try:
                self._scanned[path] = ScannedMask.of(self._read_values(path))
            except UnreadableFileError as error:
                self._scanned[path] = str(error)
        return self._scanned[path]

    def _scan_mask(self, path: Path) -> tuple[tuple[int, int], np.ndarray] | str:
        """The size of a mask and its number of pixels of each id, int64 `[256]`; or what is wrong with it."""
        scanned = self._scan_values(path)
        if isinstance(scanned, str):
            return scanned
        try:
            ids = self.values.ids(scanned.values)
        except ValueError as error:
            return str(error)
        pixels = np.zeros(256, dtype=np.int64)
        np.add.at(pixels, ids, scanned.pixels)
        return scanned.size, pixels

    def _highest_id(self, paths: Iterable[Path]) -> int:
        """The highest id in some masks that is not ignored."""
        scanned = (self._scan_mask(path) for path in paths)
        found = (np.flatnonzero(each[1][:IGNORE]) for each in scanned if not isinstance(each, str))
        return max((int(ids.max()) for ids in found if ids.size), default=0)

    def _fit_values(self) -> None:
        """Adapt the meaning of values to the names of the classes."""
        try:
            self.values = self.values.renamed(self.classes)
        except ValueError as error:
            raise DataError(self.root, str(error)) from error

    def _add(self, name: str, image: Path, mask: Path) -> None:
        """Add a sample, or report what is wrong with it."""
        if self._leaves_out(image):
            return
        header = self._scan_image(image)
        if header is None:
            return
        scanned = self._scan_mask(mask)
        if isinstance(scanned, str):
            self.problems.report(mask, "unreadable annotation", scanned)
            return
        mask_size, pixels = scanned
        if mask_size != header.size:
            detail = f"the mask is {mask_size[1]}x{mask_size[0]}, but {image.name} is {header.describe(mask_size)}"
            self.problems.report(mask, "size mismatch", detail)
            return
        if pixels[len(self.classes) : IGNORE].any():
            detail = f"{self._unknown(mask)} with {len(self.classes)} classes are set to {IGNORE}"
            self.problems.report(mask, "unknown class", detail, "clipped")
        self._append(image, header.settled())
        self._count(pixels)
        self.ids.append(name)
        self.mask_paths.append(mask)

    def _count(self, pixels: np.ndarray) -> None:
        """Count the pixels of each id, int64 `[256]`, of a sample that is added."""
        self._pixels += pixels
        self._present.append(frozenset(np.flatnonzero(pixels[: len(self.classes)]).tolist()))

    def classes_in(self, index: int) -> frozenset[int]:
        """See `ImageSet`."""
        return self._present[index]

    def _unknown(self, mask: Path) -> str:
        """The values of a mask that are no class, as text."""
        raw = self._scan_values(mask)
        assert not isinstance(raw, str)
        ids = self.values.ids(raw.values)
        unknown = raw.values[(ids >= len(self.classes)) & (ids != IGNORE)].tolist()
        return f"ids {unknown}" if self.values.table is None else f"values {', '.join(map(shown, unknown))}"

    def class_counts(self) -> list[int]:
        """The number of pixels of each class, counted when the masks were opened."""
        return self._pixels[: len(self.classes)].tolist()

    def _why_absent(self) -> str:
        ignored, others = int(self._pixels[IGNORE]), int(self._pixels[len(self.classes) : IGNORE].sum())
        total = f"of {int(self._pixels.sum()):,} pixels"
        reasons = []
        if others:
            reasons.append(f"{others:,} {total} have ids beyond the {len(self.classes)} classes")
        if ignored:
            reasons.append(
                f"{ignored:,} {total} are {IGNORE}, which means 'ignored'; if it is a class in these files, replace it "
                f"by the number of that class (0 to {len(self.classes) - 1})"
            )
        return "".join(f"; {reason}" for reason in reasons)

    def mask(self, index: int) -> tv_tensors.Mask:
        """The mask of a sample, uint8 `[H, W]`, without reading or transforming the image."""
        mask = self._read_mask(self.mask_paths[index])
        if mask.shape != self.sizes[index]:
            raise UnreadableFileError(
                self.mask_paths[index], f"it had the size of the image and is now {mask.shape[1]}x{mask.shape[0]}"
            )
        mask[mask >= len(self.classes)] = IGNORE
        return tv_tensors.Mask(torch.from_numpy(mask))

    def _load(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        return self._read(index), self.mask(index)
