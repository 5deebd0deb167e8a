"""Images sorted into a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import tv_tensors

from pliant.data import DataError, ImageFolder, transforms


def picture(path: Path, size: tuple[int, int] = (40, 30), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(["train/cat/1.jpg", "train/cat/more/2.JPEG", "train/ant/3.png", "val/cat/4.jpg"]):
        picture(tmp_path / name, value=40 * index)
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_classes_are_folders(root: Path) -> None:
    data = ImageFolder(root)
    assert data.classes == ("ant", "cat")
    assert [(path.name, label) for path, label in zip(data.paths, data.labels, strict=True)] == [
        ("3.png", 0),
        ("1.jpg", 1),
        ("2.JPEG", 1),
    ]
    assert data.sizes == [(30, 40)] * 3
    image, label = data[2]
    assert isinstance(image, tv_tensors.Image)
    assert (image.shape, image.dtype, label) == ((3, 30, 40), torch.uint8, 1)
    assert not len(data.problems)


def test_every_format_is_found_and_other_files_are_reported(root: Path) -> None:
    for index, name in enumerate(["a.WebP", "b.bmp", "deep/deeper/c.tiff", "d.GIF", "e.ppm"]):
        picture(root / "train" / "cat" / name, value=index)
    notes = root / "train" / "cat" / "notes.txt"
    notes.write_text("not an image")
    (root / "train" / "cat" / "._a.webp").write_text("what macOS leaves beside a file")
    data = ImageFolder(root)
    assert data.labels.count(1) == 7
    assert [(problem.path, problem.kind) for problem in data.problems] == [(notes, "not an image")]


def test_other_splits_take_the_names_and_order_of_training(root: Path) -> None:
    picture(root / "val" / "bee" / "5.jpg")
    data = ImageFolder(root, "val", classes=("zebra", "cat"))
    assert data.labels == [1]
    assert [(problem.path, problem.kind) for problem in data.problems] == [(root / "val" / "bee", "unknown class")]


def test_what_is_wrong_is_reported_with_its_path(root: Path) -> None:
    broken = root / "train" / "cat" / "0.jpg"
    broken.write_bytes(b"\xff\xd8 not a picture")
    (root / "train" / "empty").mkdir()
    data = ImageFolder(root)
    assert len(data) == 3
    assert {(problem.path, problem.kind) for problem in data.problems} == {
        (broken, "unreadable image"),
        (root / "train" / "empty", "empty class"),
    }
    with pytest.raises(DataError, match=r"0\.jpg: unreadable image"):
        ImageFolder(root, strict=True)


def test_pixels_that_break_later_are_replaced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ImageFolder(root)
    data.paths[1].write_bytes(b"gone")
    assert data[1][1] == data.labels[2]
    assert "1.jpg cannot be read" in caplog.text


def test_missing_splits_are_errors_that_list_those_there(root: Path) -> None:
    (root / "flat").mkdir()
    with pytest.raises(DataError, match=r"no split 'test'.*splits there: train, val"):
        ImageFolder(root, "test")
    with pytest.raises(DataError, match="splits there: none"):
        ImageFolder(root / "nowhere")
    (root / "bare" / "class").mkdir(parents=True)
    with pytest.raises(DataError, match=r"(?s)no usable image.*empty class"):
        ImageFolder(root, "bare")


def test_transforms_give_batches(root: Path) -> None:
    for transform in (transforms.classification_train(16), transforms.classification_eval(20, 100, 16)):
        data = ImageFolder(root, transforms=transform)
        images, labels = default_collate([data[0], data[1]])
        assert type(images) is torch.Tensor
        assert (images.shape, images.dtype) == ((2, 3, 16, 16), torch.float32)
        assert labels.tolist() == [0, 1]
        assert images.max() <= 1


def test_the_centre_is_judged() -> None:
    image = tv_tensors.Image(torch.zeros(3, 40, 80, dtype=torch.uint8))
    image[:, 12:28, 32:48] = 255
    cut = transforms.classification_eval(20, 100, 4)(image)
    assert cut.shape == (3, 4, 4)
    assert cut.min() == 1.0
