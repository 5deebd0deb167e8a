"""A data folder that goes away, or changes, while it is read: one clear error, not an image skipped at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pliant.data import COCODetection, DataError, ImageFolder, ImageSet, VOCDetection, VOCSegmentation
from pliant.engine.loader import Loader

NAMES = [f"{number:02d}" for number in range(12)]


@pytest.fixture
def openers(voc_folder: Any) -> dict[str, Callable[[], ImageSet]]:
    """Every kind of data set on the same twelve images."""
    folder = voc_folder()
    for name in NAMES:
        folder.image(name)
        folder.annotation(name, [("cat", (5, 5, 20, 20))])
        folder.mask(name, np.ones((30, 40)))
    for task in ("Main", "Segmentation"):
        folder.split("train", NAMES, task)
    images = folder.root / "JPEGImages"
    listed = ",".join(f'{{"id": {index}, "file_name": "{name}.jpg"}}' for index, name in enumerate(NAMES))
    coco = folder.root / "coco.json"
    coco.write_text(f'{{"images": [{listed}], "annotations": [], "categories": [{{"id": 1, "name": "cat"}}]}}')
    (folder.root / "train").mkdir()
    (folder.root / "train" / "cat").symlink_to(images, target_is_directory=True)
    return {
        "detection": lambda: VOCDetection(folder.root),
        "segmentation": lambda: VOCSegmentation(folder.root),
        "coco": lambda: COCODetection(images, coco),
        "classification": lambda: ImageFolder(folder.root),
    }


def error_of(batches: Iterator[Any]) -> tuple[Path, str] | None:
    """The path and text of the error, which is let go of, since its traceback would keep the loader's processes."""
    try:
        list(batches)
    except DataError as error:
        return error.path, str(error)
    return None


def first(samples: list[Any]) -> Any:
    return samples[0]


@pytest.mark.parametrize("kind", ["detection", "segmentation", "coco", "classification"])
@pytest.mark.parametrize("gone", ["folder", "all its files", "all above"])
def test_a_lost_folder_is_one_error(openers: Any, tmp_path: Path, kind: str, gone: str) -> None:
    data = openers[kind]()
    assert data[0] is not None
    images = tmp_path / "set" / "JPEGImages"
    shutil.rmtree(tmp_path / "set" if gone == "all above" else images)
    if gone == "all its files":  # as where a disk is no longer mounted
        images.mkdir()
    before = len(data.problems)
    for skip in (False, True):
        if skip:
            data.skip_damaged()
        with pytest.raises(
            DataError, match="existed when the data set was opened, and is now missing or empty"
        ) as caught:
            data[1]
        assert caught.value.path in (images, tmp_path / "set" / "train" / "cat")
    assert len(data.problems) == before
    assert data.skipped == []


def test_lost_masks_are_one_error(openers: Any, tmp_path: Path) -> None:
    data = openers["segmentation"]()
    shutil.rmtree(tmp_path / "set" / "SegmentationClass")
    with pytest.raises(DataError, match=r"SegmentationClass: existed when"):
        data[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_lost_while_a_loader_runs(openers: Any, tmp_path: Path, workers: int) -> None:
    data = openers["detection"]()
    loader = Loader(data, first, num_workers=workers, prefetch_factor=1 if workers else None)
    batches = iter(loader)
    next(batches)
    images = tmp_path / "set" / "JPEGImages"
    images.rename(tmp_path / "elsewhere")
    # From another process, too, it is the same error of one line.
    message = f"{images}: existed when the data set was opened, and is now missing or empty"
    assert error_of(batches) == (images, message)


def test_one_lost_image_is_skipped(openers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = openers["detection"]()
    (tmp_path / "set" / "JPEGImages" / "03.jpg").unlink()
    assert [data[index][1]["image_id"] for index in (2, 3, 3)] == [2, 4, 4]
    assert data.problems.counts() == {"unreadable image": 1}
    assert len(caplog.records) == 1


def test_an_image_of_another_size_is_not_used_with_its_boxes(openers: Any, tmp_path: Path) -> None:
    data = openers["detection"]()
    Image.new("RGB", (9, 8)).save(tmp_path / "set" / "JPEGImages" / "03.jpg")
    image, target = data[3]
    assert (image.shape, target["image_id"]) == ((3, 30, 40), 4)
    assert "it was 40x30 and is now 9x8" in data.problems.summary()
