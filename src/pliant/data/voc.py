"""Detection and segmentation data in the PASCAL VOC layout, with VOC's classes or any others."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from pliant.constants import IGNORE
from pliant.data.box_checks import clipped, degenerate, normalised
from pliant.data.detection_set import Boxes, DetectionSet
from pliant.data.files import FileFinder, files_below, read_lines
from pliant.data.image_set import Transforms, check_classes
from pliant.data.images import MASK_SUFFIXES
from pliant.data.mask_values import MaskValues, understand
from pliant.data.problems import DataError, ProblemLog
from pliant.data.sbd import PLACES, find_sbd, read_mat, read_sbd
from pliant.data.segmentation_set import SegmentationSet
from pliant.data.voc_layout import (
    VOC_CLASSES,
    Annotation,
    SplitEntry,
    available_splits,
    find_folders,
    is_official,
    locate_image,
    read_annotation,
    read_split,
)


class VOCDetection(DetectionSet):
    """Boxes from `Annotations/ID.xml` for the ids in `ImageSets/Main/SPLIT.txt`.

    Suffixes of images, annotations and lists may be in any case, and images in any supported format.
    `pliant.data.voc_layout.read_split` documents how the lines of a list are read. VOC counts pixels from 1 and
    includes both ends, so xmin..xmax becomes the edges (xmin - 1, xmax). Image ids are positions in the split; `ids`
    contains VOC's own names.

    If classes are not given, they are the names in *all* annotations, sorted, so that the splits of a folder agree. For
    VOC's own folders they are its twenty classes, even if only some occur.

    Args:
        root: folder with `Annotations`, `ImageSets/Main` and `JPEGImages`, or a development kit, which contains such
            folders named `VOC2007` and so on.
        split: name of a split, or several joined by `+`. In a development kit a year may come first,
            `"2007_trainval+2012_trainval"`; without one, every year that has the split is used.
        classes: names of the classes to use, in order. Boxes of other classes are reported and skipped.
        transforms: called with image and target.
        strict: raise at the first problem.
        require_boxes: leave out images without a box to train on, that is one neither difficult nor a crowd.
        only: image files to use; None for all.

    Raises:
        DataError: if a folder or split is missing or no image is usable; in strict mode at any problem.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        require_boxes: bool = False,
        only: Collection[Path] | None = None,
    ) -> None:
        super().__init__(Path(root), transforms, strict, require_boxes, only)
        names = check_classes(classes)
        folders = find_folders(self.root)
        self._finder = FileFinder()
        entries = read_split(folders, "Main", split, self._finder)
        self.split = split
        self.ids: list[str] = []
        self._annotations: dict[Path, Annotation | str] = {}
        if names is None:
            names = self._discover(folders, entries)
        if not names:
            places = ", ".join(str(folder / "Annotations") for folder in folders.values())
            raise DataError(self.root, f"none of the {len(self._annotations)} .xml files in {places} names a class")
        self.classes = names
        self._labels = {name: label for label, name in enumerate(names, start=1)}
        seen: set[Path] = set()
        for position, entry in enumerate(entries):
            if self._leaves_out(locate_image(entry.folder, entry.name, self._finder)):
                continue
            place = entry.folder / "Annotations"
            annotation = self._finder.find(place, entry.name, (".xml",))
            missing = place / f"{entry.name}.xml"
            if (annotation or missing) in seen:
                self.problems.report(entry.source, "duplicate id", f"line {entry.line}: {entry.name} comes again")
                continue
            seen.add(annotation or missing)
            if annotation is None:
                detail = f"{entry.source.name} lists {entry.name}{self._finder.beside(place, entry.name)}"
                self.problems.report(missing, "missing annotation", detail)
            else:
                self._scan(entry, annotation, position)
        del self._annotations, self._labels, self._finder
        self._require_samples()

    def _discover(self, folders: dict[str, Path], entries: list[SplitEntry]) -> tuple[str, ...]:
        found = set()
        for folder in folders.values():
            for path in files_below(folder / "Annotations", (".xml",))[0]:
                annotation = self._annotation(path)
                if not isinstance(annotation, str):
                    found |= {item.name for item in annotation.objects if item.name}
        if found and found <= set(VOC_CLASSES) and is_official(folders, entries):
            return VOC_CLASSES
        return tuple(sorted(found))

    def _annotation(self, path: Path) -> Annotation | str:
        """The contents of the file, or what is wrong with it."""
        if path not in self._annotations:
            try:
                self._annotations[path] = read_annotation(path)
            except (OSError, ValueError) as error:
                self._annotations[path] = str(error)
        return self._annotations[path]

    def _scan(self, entry: SplitEntry, path: Path, position: int) -> None:
        annotation = self._annotation(path)
        if isinstance(annotation, str):
            self.problems.report(path, "unreadable annotation", annotation)
            return
        image = locate_image(entry.folder, entry.name, self._finder, annotation.filename)
        if image is None:
            _report_missing_image(self.problems, entry, self._finder)
            return
        if self._leaves_out(image):
            return
        header = self._scan_image(image)
        if header is None:
            return
        claimed = annotation.size
        # Some tools leave the size out or write zero.
        if all(value > 0 for value in claimed):
            if claimed != header.size:
                detail = f"annotated {claimed[1]:g}x{claimed[0]:g}, but {image.name} is {header.describe(claimed)}"
                self.problems.report(path, "size mismatch", detail)
                return
            header = header.settled()
        boxes = read_boxes(path, annotation, header.size, self._labels, self.problems)
        if self._add(image, header, boxes, position):
            self.ids.append(entry.name)


def read_boxes(
    path: Path, annotation: Annotation, size: tuple[int, int], labels: Mapping[str, int], problems: ProblemLog
) -> Boxes:
    """The boxes of an annotation, in an image of `size` (height, width); what is wrong with others is reported."""
    boxes = Boxes()
    for number, item in enumerate(annotation.objects, start=1):
        name = item.name
        if name not in labels:
            problems.report(path, "unknown class", f"object {number} is a {name!r:.200}")
            continue
        x_min, y_min, x_max, y_max = item.corners()
        where = f"object {number} ({name}): xmin, ymin, xmax, ymax = {', '.join(item.coordinates):.200}"
        corners = x_min, y_min, x_max, y_max
        kind = degenerate(corners) or normalised(corners)
        if kind is not None:
            problems.report(path, kind, where)
            continue
        box = clipped((x_min - 1, y_min - 1, x_max, y_max), size, path, where, problems)
        if box is not None:
            boxes.add(box, labels[name], difficult=item.difficult, truncated=item.truncated)
    return boxes


class VOCSegmentation(SegmentationSet):
    """Masks from `SegmentationClass/ID.png` for the ids in `ImageSets/Segmentation/SPLIT.txt`.

    A missing mask is searched for in `SegmentationClassAug`, where SBD's masks often are as PNG files.

    If class names are not given, they come from `classes.txt` in `root` (one name per line, starting with id 0); or
    they are the background and VOC's twenty classes, if the folders are VOC's own (named VOC and a year, with VOC's
    image numbers) and no id exceeds 20; otherwise they are `background`, `class_1`, `class_2` and so on, up to the
    largest id in *all* masks.

    Args:
        root: folder with `SegmentationClass`, `ImageSets/Segmentation` and `JPEGImages`, or a development kit, see
            `VOCDetection`.
        split: name of a split, or several joined by `+`. The name `sbd` selects all of SBD except VOC's `val` and the
            other parts; `2012_train+sbd` gives the 10,582 images that are usually trained on. SBD is searched for in
            `benchmark_RELEASE/dataset`, `sbd` and `SBD`, in `root` or beside `VOCdevkit`.
        classes: names of the ids 0, 1, ..., so the background comes first. Pixels with a higher id are reported and set
            to 255.
        transforms: called with image and mask.
        strict: raise at the first problem.
        only: image files to use; None for all.
        values: what the values of the masks mean; by default they are ids, and 0 and 255 are background and foreground
            if no mask has another value.

    Raises:
        DataError: if a folder or split is missing or no image is usable; in strict mode at any problem.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        only: Collection[Path] | None = None,
        values: MaskValues | None = None,
    ) -> None:
        super().__init__(Path(root), transforms, strict, only, values)
        names = check_classes(classes)
        folders = find_folders(self.root)
        self._finder = FileFinder()
        parts = split.split("+")
        own = [part for part in parts if part != "sbd"]
        entries = read_split(folders, "Segmentation", "+".join(own), self._finder) if own else []
        self.split = split
        if self.values.table is None:
            self._understand(folders)
        if names is None:
            names = self.values.classes or self._read_names() or self._discover(folders, entries)
        self.classes = names
        self._fit_values()
        seen: set[Path] = set()
        for entry in entries:
            place = entry.folder / "SegmentationClass"
            mask = self._find_mask(entry)
            missing = place / f"{entry.name}.png"
            if (mask or missing) in seen:
                self.problems.report(entry.source, "duplicate id", f"line {entry.line}: {entry.name} comes again")
                continue
            seen.add(mask or missing)
            image = locate_image(entry.folder, entry.name, self._finder)
            if self._leaves_out(image):
                continue
            if image is None:
                _report_missing_image(self.problems, entry, self._finder)
            elif mask is None:
                detail = f"{entry.source.name} lists {entry.name}{self._finder.beside(place, entry.name)}"
                self.problems.report(missing, "missing annotation", detail)
            else:
                self._add(entry.name, image, mask)
        if "sbd" in parts:
            self._scan_sbd(folders, {entry.name for entry in entries})
        del self._scanned, self._finder
        self._require_samples()

    def _read_names(self) -> tuple[str, ...] | None:
        path = self.root / "classes.txt"
        if not path.is_file():
            return None
        try:
            return check_classes([line for line in read_lines(path) if line])
        except (OSError, ValueError) as error:
            raise DataError(path, f"expected one class name a line: {error}") from error

    def _discover(self, folders: dict[str, Path], entries: list[SplitEntry]) -> tuple[str, ...]:
        highest = self._highest_id(_masks(folders))
        if highest <= len(VOC_CLASSES) and is_official(folders, entries):
            return ("background", *VOC_CLASSES)
        return ("background", *(f"class_{value}" for value in range(1, highest + 1)))

    def _understand(self, folders: dict[str, Path]) -> None:
        """Take 0 and 255 as background and object, if no mask has another value."""
        found = [scanned for path in _masks(folders) if not isinstance(scanned := self._scan_values(path), str)]
        values = set().union(*(scanned.values.tolist() for scanned in found)) - self.values.ignored
        if values == {0, IGNORE}:
            self.values = understand([values], self.values.ignored)

    def _find_mask(self, entry: SplitEntry) -> Path | None:
        places = (entry.folder / name for name in ("SegmentationClass", "SegmentationClassAug"))
        found = (self._finder.find(place, entry.name, MASK_SUFFIXES) for place in places)
        return next((mask for mask in found if mask is not None), None)

    def _scan_sbd(self, folders: dict[str, Path], taken: set[str]) -> None:
        folder = find_sbd(self.root)
        if folder is None:
            raise DataError(self.root, f"SBD is missing; looked for {', '.join(PLACES)}, each containing cls/")
        evaluated = (
            read_split(folders, "Segmentation", "val", self._finder)
            if "val" in available_splits(folders, "Segmentation")
            else []
        )
        taken = taken | {entry.name for entry in evaluated}
        for name, image, mask in read_sbd(folder):
            if name in taken:
                continue
            if os.path.isfile(image) and os.path.isfile(mask):
                self._add(name, image, mask)
            else:
                kind, path = ("missing annotation", mask) if os.path.isfile(image) else ("missing image", image)
                self.problems.report(path, kind, f"SBD lists {name}")

    def _read_values(self, path: Path) -> np.ndarray:
        return read_mat(path).astype(np.int32) if path.suffix.lower() == ".mat" else super()._read_values(path)


def _masks(folders: dict[str, Path]) -> list[Path]:
    """The masks in all folders."""
    return [path for folder in folders.values() for path in files_below(folder / "SegmentationClass", MASK_SUFFIXES)[0]]


def _report_missing_image(problems: ProblemLog, entry: SplitEntry, finder: FileFinder) -> None:
    """Report that an id has no image, and what there is instead."""
    images = entry.folder / "JPEGImages"
    detail = f"nor is there one with another image suffix{finder.beside(images, entry.name)}"
    problems.report(images / f"{entry.name}.jpg", "missing image", detail)
