"""Segmentation data sets whose masks are drawn from outlines of objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torchvision import tv_tensors

from pliant.constants import IGNORE
from pliant.data.image_set import SizeFormat, Transforms, check_classes
from pliant.data.images import ImageHeader
from pliant.data.mask_values import MaskValues
from pliant.data.outlines import Outline, clip_outline, draw, with_background
from pliant.data.problems import DataError, ProblemLog
from pliant.data.segmentation_set import SegmentationSet

_MOST_CLASSES = IGNORE - 1


class OutlineFormat(SizeFormat, Protocol):
    """Reads the outlines in the files of annotations of one format."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order."""

    def outlined(self, path: Path) -> bool:
        """Whether a file has an outline that is more than a box; False if it cannot be read."""

    def outlines(
        self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog
    ) -> list[Outline]:
        """The outlines of a file, in an image of `size` (height, width); what is wrong with others is reported.

        Objects of a class that `labels` lacks, or of which only the box is known, have the label `IGNORE`.
        """


class DrawnSegmentation(SegmentationSet):
    """Images with masks that are drawn from outlines, see `pliant.data.outlines.draw`.

    Pixels outside all outlines are the background, which is the first class. Objects of other classes than those that
    are used, and objects with a box alone, are ignored.
    """

    def __init__(
        self,
        root: Path,
        transforms: Transforms | None,
        strict: bool,
        only: Collection[Path] | None = None,
        values: MaskValues | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, only, values)
        if self.values.table is not None:
            raise DataError(root, "mask_values are for masks in files, and these are outlines with names: set classes")
        self._outlines: list[list[Outline]] = []

    def _use_classes(self, given: Sequence[str] | None, there: Sequence[str]) -> dict[str, int]:
        """Set the classes, the background first; the label of each of the others.

        Args:
            given: names that the user chose.
            there: names in the data.
        """
        self.classes = with_background(check_classes(given) or there)
        if len(self.classes) == 1:
            raise DataError(self.root, "no outline has the name of a class")
        if len(self.classes) > _MOST_CLASSES:
            raise DataError(self.root, f"a mask has at most {_MOST_CLASSES} classes, got {len(self.classes)}")
        # An outline of the background is drawn as well, over what is below.
        return {name: label for label, name in enumerate(self.classes)}

    def _add_drawn(self, path: Path, header: ImageHeader, outlines: Sequence[Outline], annotation: Path) -> None:
        """Add a sample; its mask is drawn once to count its pixels."""
        self._outlines.append(list(outlines))
        mask = self._drawn(len(self._outlines) - 1, header.size)
        self._append(path, header)
        self._count(np.bincount(mask.ravel(), minlength=IGNORE + 1))
        self.ids.append(path.relative_to(self.root).with_suffix("").as_posix())
        self.mask_paths.append(annotation)

    def _drawn(self, index: int, size: tuple[int, int]) -> np.ndarray:
        mask = draw(self._outlines[index], size)
        for value in self.values.ignored:
            mask[mask == value] = IGNORE
        return mask

    def mask(self, index: int) -> tv_tensors.Mask:
        """The mask of a sample, uint8 `[H, W]`."""
        return tv_tensors.Mask(torch.from_numpy(self._drawn(index, self.sizes[index])))


class ListedOutlines(DrawnSegmentation):
    """Outlines from a list of images, each with its own file of annotations.

    Args:
        root: folder of the data.
        samples: image and annotation of each sample. Without an annotation, an image has no objects; without an image,
            it is reported as missing.
        form: format of the annotations.
        classes: names of the classes to use, in order; a background is added in front.
        transforms: called with image and mask.
        strict: raise at the first problem.
        only: image files to use; None for all.
        values: the classes that are ignored.

    Raises:
        DataError: if no class is known or no image is usable; in strict mode at any problem.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[tuple[Path | None, Path | None]],
        form: OutlineFormat,
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
        values: MaskValues | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, only, values)
        labels = self._use_classes(classes, form.classes())
        for _, image, annotation, header in self._opened(samples, form):
            outlines = [] if annotation is None else form.outlines(annotation, header.size, labels, self.problems)
            self._add_drawn(image, header, outlines, image if annotation is None else annotation)
        self._require_samples()


def checked(outline: Outline, path: Path, where: str, size: tuple[int, int], problems: ProblemLog) -> Outline | None:
    """An outline as it can be drawn in an image of `size`, or None; what is wrong with it is reported."""
    found, kind = clip_outline(outline, size)
    if kind is not None:
        detail = f"{where} in an image of {size[1]}x{size[0]}"
        problems.report(path, kind, detail, "skipped" if found is None else "clipped")
    return found
