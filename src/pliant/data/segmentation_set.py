"""The base of segmentation data sets: images with a mask of class ids each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors

from pliant.constants import IGNORE
from pliant.data.image_set import ImageSet, Transforms
from pliant.data.images import UnreadableFileError, read_mask


class SegmentationSet(ImageSet):
    """Images with masks.

    A sample is `(image, mask)`: a uint8 `tv_tensors.Image` `[3, H, W]`, and a uint8 `tv_tensors.Mask` `[H, W]` of class
    ids, 255 where pixels are ignored.

    Attributes:
        classes: names of the ids 0, 1, ...
        ids: the data set's own name of each sample.
        mask_paths: mask file of each sample.
    """

    unit = "pixel"

    def __init__(self, root: Path, transforms: Transforms | None, strict: bool) -> None:
        super().__init__(root, transforms, strict)
        self.ids: list[str] = []
        self.mask_paths: list[Path] = []
        self._scanned: dict[Path, tuple[tuple[int, int], np.ndarray] | str] = {}
        self._pixels = np.zeros(256, dtype=np.int64)  # of each id, over all samples

    def _read_mask(self, path: Path) -> np.ndarray:
        """The ids of a file, uint8 `[H, W]`. Raises `UnreadableFileError` if it has none."""
        return read_mask(path)

    def _scan_mask(self, path: Path) -> tuple[tuple[int, int], np.ndarray] | str:
        """The size of a mask and its number of pixels of each id, int64 `[256]`; or what is wrong with it."""
        if path not in self._scanned:
            try:
                mask = self._read_mask(path)
                pixels = np.bincount(mask.ravel(), minlength=256)
                self._scanned[path] = ((mask.shape[0], mask.shape[1]), pixels)
            except UnreadableFileError as error:
                self._scanned[path] = str(error)
        return self._scanned[path]

    def _add(self, name: str, image: Path, mask: Path) -> None:
        """Add a sample, or report what is wrong with it."""
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
        unknown = [value for value in np.flatnonzero(pixels).tolist() if len(self.classes) <= value != IGNORE]
        if unknown:
            detail = f"ids {unknown} with {len(self.classes)} classes are set to {IGNORE}"
            self.problems.report(mask, "unknown class", detail, "clipped")
        self._append(image, header.settled())
        self._pixels += pixels
        self.ids.append(name)
        self.mask_paths.append(mask)

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
