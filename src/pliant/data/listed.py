"""Data sets with one file of annotations for each image, wherever these files are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pliant.data.detection_set import Boxes, DetectionSet
from pliant.data.image_set import SizeFormat, Transforms, check_classes
from pliant.data.mask_values import MaskValues
from pliant.data.problems import DataError, ProblemLog
from pliant.data.segmentation_set import ScannedMask, SegmentationSet


class BoxFormat(SizeFormat, Protocol):
    """Reads the boxes in the files of annotations of one format."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order."""

    def boxes(self, path: Path, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog) -> Boxes:
        """The boxes of a file, in an image of `size` (height, width); what is wrong with others is reported."""


class ListedDetection(DetectionSet):
    """Boxes from a list of images, each with its own file of annotations.

    Args:
        root: folder of the data.
        samples: image and annotation of each sample. Without an annotation, an image has no objects; without an image,
            it is reported as missing.
        form: format of the annotations.
        classes: names of the classes to use, in order. Boxes of other classes are reported and skipped.
        transforms: called with image and target.
        strict: raise at the first problem.
        require_boxes: leave out images without a box to train on.
        only: image files to use; None for all.

    Raises:
        DataError: if no class is known or no image is usable; in strict mode at any problem.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[tuple[Path | None, Path | None]],
        form: BoxFormat,
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        require_boxes: bool = False,
        only: Collection[Path] | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, require_boxes, only)
        self.classes = check_classes(classes) or form.classes()
        if not self.classes:
            raise DataError(root, f"none of the {len(samples)} annotations names a class")
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        for position, image, annotation, header in self._opened(samples, form):
            boxes = Boxes() if annotation is None else form.boxes(annotation, header.size, labels, self.problems)
            self._add(image, header, boxes, position)
        self._require_samples()


class ListedSegmentation(SegmentationSet):
    """Masks from a list of images, each with its mask.

    Args:
        root: folder of the data.
        samples: image and mask of each sample.
        values: what the values of the masks mean.
        scanned: values of masks that were counted before; those that are counted now are added.
        classes: names of the classes, in the order of the ids.
        transforms: called with image and mask.
        strict: raise at the first problem.
        only: image files to use; None for all.

    Raises:
        DataError: if no image is usable, or the values do not fit the classes; in strict mode at any problem.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[tuple[Path, Path]],
        *,
        values: MaskValues,
        scanned: dict[Path, ScannedMask | str],
        classes: Sequence[str],
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
    ) -> None:
        super().__init__(root, transforms, strict, only, values)
        self.classes = check_classes(classes) or ()
        self._fit_values()
        self._scanned = scanned
        for image, mask in samples:
            self._add(image.relative_to(root).with_suffix("").as_posix(), image, mask)
        del self._scanned
        self._require_samples()
