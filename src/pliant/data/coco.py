"""Detection data in the COCO JSON format."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard

from pliant.data.box_checks import Corners, clip, clipped, degenerate, normalised
from pliant.data.coco_file import COCOFile, Entry, read_coco, read_outline
from pliant.data.detection_set import DetectionSet
from pliant.data.files import relative_path
from pliant.data.image_set import Transforms, check_classes
from pliant.data.images import ImageHeader
from pliant.data.problems import DataError


class COCODetection(COCOFile, DetectionSet):
    """Boxes from a COCO `instances` file. [x, y, width, height] becomes (x, y, x + width, y + height).

    Labels are 1 to C in the order of the category ids, or of `classes` if given; `category_ids` maps them back. Crowds
    keep their flag, `area` is the annotated area (of the outline) if there is one, and `image_id` is that of the file.

    Annotation ids are not used, since some tools restart them in every image. A box that occurs twice in an image with
    the same category, area and crowd flag counts once. Images that share an id cannot be used, since their boxes cannot
    be told apart. A file listed under several ids is one image with the boxes of all of them. An object without a
    `bbox` has the box around its `segmentation`.

    Args:
        images: folder of the images.
        annotations: JSON file.
        classes: names of the categories to use, in order. Boxes of other categories are reported and skipped.
        transforms: called with image and target.
        strict: raise at the first problem.
        require_boxes: leave out images without a box to train on, that is one that is not a crowd.
        only: image files to use; None for all.
        locate: function that finds the file of a `file_name`; by default it is looked for in `images`.

    Raises:
        DataError: if the folder or file is missing, the file has another format, two categories share a name or an id,
            or no image is usable; in strict mode at any problem.

    Attributes:
        category_ids: category id of each label, for writing results.
        annotated: whether the file contains annotations; without them no target has boxes.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: Sequence[str] | None = None,
        transforms: Transforms | None = None,
        strict: bool = False,
        require_boxes: bool = False,
        only: Collection[Path] | None = None,
        locate: Callable[[str], Path | None] | None = None,
    ) -> None:
        super().__init__(Path(images), transforms, strict, require_boxes, only)
        names = check_classes(classes)
        content, categories = self._read_file(annotations, locate)
        self.annotated = "annotations" in content
        self.classes = names or tuple(categories[key] for key in sorted(categories))
        if not self.classes:
            raise DataError(self.annotation_path, "there are no categories")
        labels = {name: label for label, name in enumerate(self.classes, start=1)}
        # Only named categories get a label; the others are unknown.
        self._labels = {key: labels[name] for key, name in categories.items() if name in labels}
        self.category_ids = {label: key for key, label in self._labels.items()}
        for image_id, entry in self._read_entries(content).items():
            assert entry.path is not None
            assert entry.header is not None
            self._add(entry.path, entry.header, entry.boxes, image_id)
        self._require_samples()

    @classmethod
    def from_folder(cls, root: str | Path, split: str, **options: Any) -> Self:
        """Open `annotations/instances_SPLIT.json` with the images in `SPLIT/`, the layout of COCO itself.

        Test splits without public annotations have `annotations/image_info_SPLIT.json`; test-dev shares its images with
        test.

        Args:
            root: folder that contains both. The images may also be in `images/SPLIT/`.
            split: name of a split such as `"train2017"`, or several joined by `+`, such as `"train2014+val2014"`.
            options: arguments of the class.

        Raises:
            DataError: if either is missing (the message lists the available splits), or two splits have different
                categories.
        """
        first, *others = (cls(*_find(Path(root), part), **options) for part in split.split("+"))
        for other in others:
            first._join(other)
        return first

    def _join(self, other: Self) -> None:
        if (other.classes, other.category_ids) != (self.classes, self.category_ids):
            raise DataError(other.annotation_path, f"its categories are not those of {self.annotation_path.name}")
        for problem in other.problems:
            self.problems.append(problem)
        self.annotated = self.annotated and other.annotated
        self.left_out += other.left_out
        known = set(self.image_ids)
        for index, (path, size, image_id) in enumerate(zip(other.paths, other.sizes, other.image_ids, strict=True)):
            if image_id in known:
                detail = f"image {image_id} ({path.name}) is also in {self.annotation_path.name}"
                self.problems.report(other.annotation_path, "duplicate id", detail)
            else:
                header = ImageHeader(size, other.turned.get(path, 1))
                self._add(path, header, other._boxes[index], image_id)

    def _read_object(self, item: dict[str, Any], where: str, category: int, entry: Entry) -> None:
        assert entry.header is not None
        if category not in self._labels:
            name = self._category_names.get(category, "not listed")
            detail = f"{where}: category {category} ({name})"
            self.problems.report(self.annotation_path, "unknown class", detail)
            return
        size, bbox = entry.header.size, item.get("bbox")
        try:
            outline = read_outline(item.get("segmentation"), 1, size) if bbox is None else None
        except ValueError as error:
            self._unreadable(where, f"without a bbox, {error}", item)
            return
        if outline is not None:  # the box around it
            x0, y0, x1, y1 = outline.corners
            bbox = [x0, y0, x1 - x0, y1 - y0]
        corners = _corners(bbox)
        detail = f"{where}: bbox = {bbox!r:.200}"
        kind = degenerate(corners) or normalised(bbox or ())
        if kind is not None:
            self.problems.report(self.annotation_path, kind, detail)
            return
        box = clipped(corners, size, self.annotation_path, detail, self.problems)
        if box is None:
            return
        area, crowd = item.get("area"), bool(item.get("iscrowd", 0))
        if not _is_number(area) or not 0 < area <= size[0] * size[1]:
            area = None
        same = (category, corners, area, crowd)
        if same in entry.seen:
            self.problems.report(self.annotation_path, "duplicate box", f"{detail}: the same box comes before")
            return
        entry.seen.add(same)
        entry.boxes.add(box, self._labels[category], area, crowd=crowd)


def available_splits(root: Path) -> list[str]:
    """The splits that have a file of annotations, or of images to submit results for."""
    names = {path.stem.partition("_")[2] for path in (root / "annotations").glob("instances_*.json")}
    info = {path.stem.removeprefix("image_info_") for path in (root / "annotations").glob("image_info_*.json")}
    return sorted(names | info)


def is_official(root: Path) -> bool:
    """Whether a folder has COCO's own layout, for one split at least."""
    for split in available_splits(root):
        with contextlib.suppress(DataError):
            _find(root, split)
            return True
    return False


def split_images(root: Path, split: str) -> list[Path]:
    """The image files of a split that are there."""
    folder, file = _find(root, split)
    names = [item.get("file_name") for item in read_coco(file)["images"] if isinstance(item, dict)]
    found = (folder / name for name in names if isinstance(name, str))
    return [path for path in found if path.is_file()]


def _find(root: Path, split: str) -> tuple[Path, Path]:
    """The folder of images and the annotation file of a split."""
    try:
        relative_path(split)
    except ValueError as error:
        raise DataError(root, str(error)) from error
    files = [root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "image_info")]
    file = next((file for file in files if file.is_file()), None)
    places = [split] if file != files[1] else [split, split.replace("-dev", "")]
    folders = [folder / place for place in places for folder in (root, root / "images")]
    images = next((folder for folder in folders if folder.is_dir()), None)
    if file is None or images is None:
        there = ", ".join(available_splits(root)) or "none"
        raise DataError(
            root,
            f"no split {split!r}: looked for annotations/{files[0].name} (or {files[1].name}) and for the images in "
            f"{split}/ or images/{split}/; splits with annotations there: {there}",
        )
    return images, file


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _corners(bbox: Any) -> Corners:
    """The corners of [x, y, width, height]; NaN if it is something else."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return math.nan, math.nan, math.nan, math.nan
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:  # a JSON integer of more than 308 digits
        return math.nan, math.nan, math.nan, math.nan
    return x, y, x + width, y + height


def bounded(bbox: Any, size: tuple[int, int]) -> Corners | None:
    """The part of [x, y, width, height] that is in an image of `size` (height, width); None if there is none."""
    corners = _corners(bbox)
    return None if degenerate(corners) is not None else clip(corners, *size)[0]
