"""Masks that do not fit, hold what is no class, or want to do harm."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from data.bounded import memory_limit
from PIL import Image

from pliant.data import DataError, VOCSegmentation
from pliant.data.images import UnreadableFileError
from pliant.data.sbd import read_mat, read_sbd

IDS = np.arange(30 * 40).reshape(30, 40) % 3


def segmentation(folder: Any) -> Path:
    """Two images of 40 x 30, `good` and `a`, with masks of three ids."""
    for name in ("good", "a"):
        folder.image(name)
        folder.mask(name, IDS)
    folder.split("train", ["good", "a"], "Segmentation")
    return folder.root


@pytest.mark.parametrize(
    ("mask", "kind", "detail"),
    [
        (Image.new("P", (30, 40)), "size mismatch", "the mask is 30x40, but a.jpg is 40x30"),
        (Image.new("P", (1, 1)), "size mismatch", "the mask is 1x1"),
        (Image.new("RGB", (40, 30), (255, 0, 0)), "unreadable annotation", "colours, such as #ff0000"),
        (Image.new("L", (10_000, 10_000)), "unreadable annotation", "too large"),
        (Image.new("L", (2, 10_000)), "unreadable annotation", "too long"),
    ],
)
def test_masks_that_do_not_fit(voc_folder: Any, mask: Image.Image, kind: str, detail: str) -> None:
    root = segmentation(voc_folder())
    path = root / "SegmentationClass" / "a.png"
    mask.save(path)
    with memory_limit(64), pytest.warns(Image.DecompressionBombWarning) if detail == "too large" else memory_limit(64):
        data = VOCSegmentation(root, classes=["background", "cat", "dog"])
    assert data.ids == ["good"]
    (problem,) = data.problems
    assert (problem.path, problem.kind) == (path, kind)
    assert detail in problem.detail


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "1"])
def test_ids_are_read_from_grey_images_of_any_mode(voc_folder: Any, mode: str) -> None:
    root = segmentation(voc_folder())
    ids = np.minimum(IDS, 1) if mode == "1" else IDS
    image = Image.fromarray(ids.astype(np.uint16) if mode == "I;16" else ids.astype(np.uint8))
    (Image.fromarray(ids > 0) if mode == "1" else image if mode == "I;16" else image.convert(mode)).save(
        root / "SegmentationClass" / "a.png"
    )
    data = VOCSegmentation(root, classes=["background", "cat", "dog"], strict=True)
    assert np.array_equal(data.mask(1), ids)


def test_unknown_ids_are_not_judged(voc_folder: Any) -> None:
    folder = voc_folder()
    root = segmentation(folder)
    folder.mask("a", np.where(IDS == 2, 254, IDS))
    data = VOCSegmentation(root, classes=["background", "cat", "dog"])
    (problem,) = data.problems
    assert (problem.kind, problem.action) == ("unknown class", "clipped")
    assert "ids [254] with 3 classes are set to 255" in problem.detail
    assert sorted(data[1][1].unique().tolist()) == [0, 1, 255]


def test_a_mask_that_changes_later_is_not_used(voc_folder: Any) -> None:
    folder = voc_folder()
    data = VOCSegmentation(segmentation(folder), classes=["background", "cat", "dog"])
    folder.mask("a", IDS.T)
    assert data[1][1].shape == (30, 40)
    assert data.problems.counts() == {"unreadable annotation": 1}
    assert "is now 30x40" in next(iter(data.problems)).detail


def mat(path: Path, mask: np.ndarray, compressed: bool = True) -> Path:
    """A file as those of SBD's `cls`: its fields and what they hold, after another variable."""
    boundaries = np.empty((2, 1), dtype=object)
    boundaries[:] = [[scipy.sparse.csc_array(np.eye(3, dtype=bool))], [scipy.sparse.csc_array(np.zeros((2, 2)))]]
    fields = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": np.array([1.0, 2.0])}
    scipy.io.savemat(path, {"other": np.arange(3.0), "GTcls": fields}, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(30, 40), (1, 1), (2, 2), (3, 1), (1, 5)])
def test_mat_files_are_read_as_scipy_does(tmp_path: Path, compressed: bool, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(4).integers(0, 21, shape, dtype=np.uint8)
    path = mat(tmp_path / "a.mat", mask, compressed)
    assert np.array_equal(scipy.io.loadmat(path)["GTcls"][0]["Segmentation"][0], mask)
    assert read_mat(path).dtype == np.uint8
    assert read_mat(path).tolist() == mask.tolist()


def test_mat_files_that_decompress_to_too_much(tmp_path: Path) -> None:
    path = mat(tmp_path / "a.mat", IDS.astype(np.uint8))
    assert read_mat(path).tolist() == IDS.tolist()
    whole = path.read_bytes()
    bomb = zlib.compress(bytes(2**27 + 1), 9)
    path.write_bytes(whole[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    with memory_limit(300), pytest.raises(UnreadableFileError, match="decompresses to more than"):
        read_mat(path)
    # An array that claims 4 GiB and has none of them.
    path.write_bytes(whole[:128] + struct.pack("<II", 14, 2**32 - 8) + whole[136:])
    with memory_limit(300), pytest.raises(UnreadableFileError, match="not a mask of SBD"):
        read_mat(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_random_damage_to_mat_files(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(3)
    path = mat(tmp_path / "a.mat", IDS.astype(np.uint8)[:4, :5], compressed)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(1000):
        damaged = whole.copy()
        damaged[rng.integers(124, len(whole), rng.integers(1, 4))] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, 3 * len(whole))].tobytes())
        with memory_limit(1000):
            try:
                assert read_mat(path).dtype == np.uint8
            except UnreadableFileError:
                refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\0b"])
def test_sbd_lists_may_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    for folder in ("img", "cls"):
        (tmp_path / folder).mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text(f"a\n{name}\n")
    with pytest.raises(DataError, match=r"train\.txt: SBD's list cannot be read"):
        read_sbd(tmp_path)
