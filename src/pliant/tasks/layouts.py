"""The layouts of data sets: how their files are arranged in a folder, and the text that explains it to users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pliant.data import DataError, ImageSet, voc_layout

SBD = """\
SBD lies beside VOCdevkit/ or in the data folder: benchmark_RELEASE/dataset/ (or sbd/) with img/ID.jpg, cls/ID.mat,
train.txt, val.txt. From the Berkeley vision group's page of "Semantic Contours from Inverse Detectors"."""
COCO = """\
train2014/, val2014/, test2015/ (or of 2017) with images, and
  annotations/instances_SPLIT.json
  annotations/image_info_test-dev2015.json                      (for results to submit)
From cocodataset.org."""
CITYSCAPES = """\
leftImg8bit/SPLIT/CITY/CITY_000000_000019_leftImg8bit.png
gtFine/SPLIT/CITY/CITY_000000_000019_gtFine_labelIds.png
for the splits train and val. From cityscapes-dataset.com."""
FOLDERS = """\
train/CLASS/NAME.jpg
val/CLASS/NAME.jpg
From image-net.org, or any images that you sort into such folders."""
_VOC = """\
VOCdevkit/VOC2007/ and VOC2012/, each with
  JPEGImages/ID.jpg
  ImageSets/Main/SPLIT.txt          Annotations/ID.xml          (detection)
  ImageSets/Segmentation/SPLIT.txt  SegmentationClass/ID.png    (segmentation)
A single such folder of your own is enough. From host.robots.ox.ac.uk/pascal/VOC."""


@dataclass(frozen=True)
class Layout:
    """One arrangement of the files of a data set, for one task.

    Attributes:
        open: Opens a split: `open(root, split, classes=, transforms=, strict=, training=)`.
        splits: Lists the names of the splits in a folder.
        text: The folders and files, as `pliant check` shows them.
        a_split: Explanation of what a split is, for the error if there is none.
        holds: Tells whether a folder has a split of some name; None if `splits` lists all of them.
        extra: Further names that a list of splits may have, each with its own text.
    """

    open: Callable[..., ImageSet]
    splits: Callable[[Path], list[str]]
    text: str
    a_split: str
    holds: Callable[[Path, str], bool] | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def has(self, root: Path, split: str) -> bool:
        """Whether a folder has a split."""
        return split in self.splits(root) if self.holds is None else self.holds(root, split)

    def described(self, split: str | None) -> str:
        """The layout's text, followed by that of each extra part that `split` names."""
        parts = (split or "").split("+")
        return "\n".join([self.text, *(text for name, text in self.extra if name in parts)])


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
        _VOC,
        f"A split is a list of the images' names without their endings, such as ImageSets/{folder}/train.txt",
        **{"holds": partial(voc_has, folder), **options},
    )


def voc_has(folder: str, root: Path, split: str) -> bool:
    """Whether VOC's layout has a split in a folder of `ImageSets`."""
    try:
        return bool(voc_layout.read_split(voc_layout.find_folders(root), folder, split))
    except DataError:
        return False
