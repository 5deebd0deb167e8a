import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from pliant.data import DataError, VOCSegmentation

IDS = np.zeros((30, 40), dtype=np.uint8)
IDS[5:20, 3:30] = 2
IDS[0] = 255


def segmentation_folder(voc_folder, names=("a",)):
    folder = voc_folder()
    for name in names:
        folder.image(name)
        folder.mask(name, IDS)
    folder.split("train", names, "Segmentation")
    return folder


def test_segmentation_sample(voc_folder):
    data = VOCSegmentation(segmentation_folder(voc_folder).root)
    assert data.classes == ("background", "class_1", "class_2")
    image, mask = data[0]
    assert image.shape == (3, 30, 40)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == torch.uint8
    assert np.array_equal(mask, IDS)
    assert len(data.problems) == 0


def test_segmentation_class_names(voc_folder):
    folder = segmentation_folder(voc_folder)
    folder.mask("other", np.full((3, 3), 4))
    assert len(VOCSegmentation(folder.root).classes) == 5
    (folder.root / "classes.txt").write_text("background\nleaf\n symptom \n\n")
    assert VOCSegmentation(folder.root).classes == ("background", "leaf", "symptom")
    assert VOCSegmentation(folder.root, classes=["x", "y", "z"]).classes == ("x", "y", "z")
    (folder.root / "classes.txt").write_text("a\na\n")
    with pytest.raises(DataError, match=r"classes\.txt"):
        VOCSegmentation(folder.root)


def test_ids_above_the_classes_are_ignored(voc_folder):
    root = segmentation_folder(voc_folder).root
    data = VOCSegmentation(root, classes=["background", "leaf"])
    (problem,) = data.problems
    assert (problem.kind, problem.action) == ("unknown class", "clipped")
    assert "[2]" in problem.detail
    assert data[0][1].unique().tolist() == [0, 255]
    with pytest.raises(DataError, match="unknown class"):
        VOCSegmentation(root, classes=["background", "leaf"], strict=True)


def test_segmentation_files_with_a_problem(voc_folder):
    names = ["ok", "noimage", "nomask", "badmask", "rgb", "size", "badimage", "ok"]
    folder = segmentation_folder(voc_folder, names)
    images, masks = folder.root / "JPEGImages", folder.root / "SegmentationClass"
    (images / "noimage.jpg").unlink()
    (masks / "nomask.png").unlink()
    (masks / "badmask.png").write_bytes(b"nothing")
    Image.new("RGB", (40, 30), (0, 0, 9)).save(masks / "rgb.png")
    folder.mask("size", IDS.T)
    (images / "badimage.jpg").write_bytes(b"nothing")
    data = VOCSegmentation(folder.root)
    assert data.ids == ["ok"]
    found = {(problem.path.name, problem.kind) for problem in data.problems}
    assert found == {
        ("noimage.jpg", "missing image"),
        ("nomask.png", "missing annotation"),
        ("badmask.png", "unreadable annotation"),
        ("rgb.png", "unreadable annotation"),
        ("size.png", "size mismatch"),
        ("badimage.jpg", "unreadable image"),
        ("train.txt", "duplicate id"),
    }


def test_classes_without_a_pixel_are_named(voc_folder):
    folder = segmentation_folder(voc_folder)
    names = ["background", "leaf", "symptom", "stem"]
    data = VOCSegmentation(folder.root, classes=names)
    assert data.class_counts() == [30 * 40 - 15 * 27 - 40, 0, 15 * 27, 0]
    said = data.absent()
    assert said.startswith("leaf, stem: there is no pixel to learn from; 40 of 1,200 pixels are 255")
    assert "(0 to 3)" in said
    assert "ids beyond" in VOCSegmentation(folder.root, classes=names[:2]).absent()
    folder.mask("a", np.where(IDS == 2, 1, 0))
    assert VOCSegmentation(folder.root, classes=names[:2]).absent() is None


@pytest.mark.parametrize("suffix", [".bmp", ".TIF", ".pgm"])
def test_masks_of_other_lossless_formats(voc_folder, suffix):
    folder = segmentation_folder(voc_folder)
    path = folder.root / "SegmentationClass" / "a.png"
    Image.fromarray(IDS).save(path.with_suffix(suffix))
    path.unlink()
    assert np.array_equal(VOCSegmentation(folder.root, strict=True)[0][1], IDS)


def test_a_mask_damaged_later_is_named(voc_folder):
    folder = segmentation_folder(voc_folder, "ab")
    data = VOCSegmentation(folder.root)
    path = folder.root / "SegmentationClass/a.png"
    path.write_bytes(b"nothing")
    assert np.array_equal(data[0][1], IDS)
    assert [(problem.path, problem.kind) for problem in data.problems] == [(path, "unreadable annotation")]


def test_coffee_leaf(shared):
    data = VOCSegmentation(shared("coffee-leaf-seg"), "val", classes=["background", "leaf", "symptom"])
    assert len(data) == 50
    assert len(data.problems) == 0
    image, mask = data[0]
    assert image.shape == (3, 512, 1024)
    assert mask.shape == (512, 1024)
    assert set(mask.unique().tolist()) <= {0, 1, 2}
