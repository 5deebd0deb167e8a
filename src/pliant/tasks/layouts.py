"""The layouts of data sets: how their files are arranged in a folder, and the text that explains it to users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pliant.data import DataError, ImageSet, voc_layout
from pliant.data.discovery import Found, Survey
from pliant.data.files import FileFinder

SBD = """\
SBD lies beside VOCdevkit/ or in the data folder: benchmark_RELEASE/dataset/ (or sbd/) with img/ID.jpg, cls/ID.mat,
train.txt, val.txt. From the Berkeley vision group's page of "Semantic Contours from Inverse Detectors"."""
COCO = """\
train2014/, val2014/, test2015/ (or of 2017) with images, and
  annotations/instances_SPLIT.json
  annotations/image_info_test-dev2015.json                      (for results to submit)
From cocodataset.org. JSON files of this format anywhere in a folder, one for all images or one for each split, are
found as well, whatever their images' paths are relative to."""
CITYSCAPES = """\
leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_labelIds.png
for the splits train and val. From cityscapes-dataset.com."""
FOLDERS = """\
train/CLASS/NAME.jpg
val/CLASS/NAME.jpg
From image-net.org, or any images that you sort into such folders."""
YOLO = """\
data.yaml with names, train, val and test, or none of it
images/train/NAME.jpg  labels/train/NAME.txt     or train/images/NAME.jpg  train/labels/NAME.txt     or side by side
Lines of a text file: CLASS X Y WIDTH HEIGHT in fractions of the image's size, or CLASS and points."""
LABELME = """\
NAME.jpg  NAME.json                              side by side, or in folders of any names
As LabelMe, AnyLabeling and X-AnyLabeling write them, with shapes that are rectangles, polygons, circles or masks."""
TABLE = """\
One .csv file, or one for each split, with a row for each box and the names of the columns in its first line:
filename (or image_id), class, and xmin, ymin, xmax, ymax, or x, y, width, height, or one column bbox with these four.
Boxes are in pixels or in fractions of the image's size; images are in folders of any names."""
DRAWN = "\nMasks are drawn from the outlines; annotations that have boxes alone are for detection."
MASKS = """\
images/NAME.jpg  masks/NAME.png                  in folders of any names, also train/images/, images/train/ and the like
Values of a mask: class ids (255 is ignored), 0 and 255, grey levels, or colours."""
_VOC = """\
VOCdevkit/VOC2007/ and VOC2012/, each with
  JPEGImages/ID.jpg
  ImageSets/Main/SPLIT.txt          Annotations/ID.xml          (detection)
  ImageSets/Segmentation/SPLIT.txt  SegmentationClass/ID.png    (segmentation)
A single such folder of your own is enough. From host.robots.ox.ac.uk/pascal/VOC."""
_VOC_ANY = (
    "\nImages with .xml files of the same names in folders of any names are found as well, with and without lists."
)


@dataclass(frozen=True)
class Layout:
    """One arrangement of the files of a data set, for one task.

    Attributes:
        open: Opens a split: `open(root, split, classes=, transforms=, strict=, training=)`, and with `only=` the files
            of the images to use, if a split has to be made.
        splits: Lists the names of the splits in a folder.
        text: The folders and files, as `pliant check` shows them.
        a_split: Explanation of what a split is, for the error if there is none.
        holds: Tells whether a folder has a split of some name; None if `splits` lists all of them.
        extra: Further names that a list of splits may have, each with its own text.
        title: What a folder of the layout is, in a few words.
        images: Lists the image files of a split; None if no split can be made of it.
        fits: Tells whether a folder has the layout's own form; None if it has none, or cannot tell.
        find: Finds the layout's files in any folders; None if only its own form is read.
        by_purpose: Whether `open` of a found data set takes `require_boxes`, which is set in training.
    """

    open: Callable[..., ImageSet]
    splits: Callable[[Path], list[str]]
    text: str
    a_split: str
    holds: Callable[[Path, str], bool] | None = None
    extra: tuple[tuple[str, str], ...] = ()
    title: str = ""
    images: Callable[[Path, str], list[Path]] | None = None
    fits: Callable[[Path], bool] | None = None
    find: Callable[[Survey], Found | None] | None = None
    by_purpose: bool = False

    def has(self, root: Path, split: str) -> bool:
        """Whether a folder has a split."""
        return split in self.splits(root) if self.holds is None else self.holds(root, split)

    def described(self, split: str | None) -> str:
        """The layout's text, followed by that of each extra part that `split` names."""
        parts = (split or "").split("+")
        return "\n".join([self.text, *(text for name, text in self.extra if name in parts)])

    def found_options(self, training: bool) -> dict[str, Any]:
        """Further arguments to open a found data set with."""
        return {"require_boxes": training} if self.by_purpose else {}


def voc(open: Callable[..., ImageSet], folder: str, **options: Any) -> Layout:
    """VOC's layout, which has a folder of image lists for each task.

    Args:
        open: See `Layout`.
        folder: The folder in `ImageSets`, such as ``"Main"``.
        options: Further attributes of `Layout`.
    """
    return Layout(
        open,
        lambda root: voc_layout.available_splits(voc_layout.find_folders(root), folder),
        _VOC + (_VOC_ANY if options.get("find") else ""),
        f"A split is a list of the images' names without their endings, such as ImageSets/{folder}/train.txt",
        **{
            "holds": partial(voc_has, folder),
            "title": f"VOC: JPEGImages/, {_TRUTHS[folder]}/ and lists in ImageSets/{folder}/",
            "images": partial(_voc_images, folder),
            "fits": partial(_fits_voc, folder),
            **options,
        },
    )


def found_only(title: str, text: str, find: Callable[[Survey], Found | None], **options: Any) -> Layout:
    """A layout that has no form of its own, but is found by its files.

    Args:
        title, text, find: See `Layout`.
        options: Further attributes of `Layout`.
    """

    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("a layout without a form of its own is opened by what is found")

    return Layout(
        missing, lambda root: [], text, "A split is a folder or a list of images", title=title, find=find, **options
    )


_TRUTHS = {"Main": "Annotations", "Segmentation": "SegmentationClass"}


def voc_has(folder: str, root: Path, split: str) -> bool:
    """Whether VOC's layout has a split in a folder of `ImageSets`."""
    try:
        return bool(voc_layout.read_split(voc_layout.find_folders(root), folder, split))
    except DataError:
        return False


def _fits_voc(folder: str, root: Path) -> bool:
    try:
        folders = voc_layout.find_folders(root)
    except DataError:
        return False
    there = any((each / _TRUTHS[folder]).is_dir() for each in folders.values())
    return there and bool(voc_layout.available_splits(folders, folder))


def _voc_images(folder: str, root: Path, split: str) -> list[Path]:
    finder = FileFinder()
    entries = voc_layout.read_split(voc_layout.find_folders(root), folder, split, finder)
    found = (voc_layout.locate_image(entry.folder, entry.name, finder) for entry in entries)
    return [image for image in found if image is not None]
