import logging

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from pliant.data import VOC_CLASSES, DataError, VOCDetection, VOCSegmentation, transforms

GOOD = ("cat", (11, 6, 20, 25))


def one_image(folder, items, **options):
    folder.image("a")
    folder.annotation("a", items, **options)
    folder.split("train", ["a"])
    return folder.root


def test_sample(voc_folder):
    extra = "<difficult>1</difficult><truncated>0</truncated><part><name>tail</name></part>"
    root = one_image(voc_folder(), [GOOD, ("dog", (1, 1, 40, 30))], extra=extra)
    data = VOCDetection(root)
    assert data.classes == ("cat", "dog")
    assert len(data.problems) == 0
    image, target = data[0]
    assert isinstance(image, tv_tensors.Image)
    assert (image.shape, image.dtype) == ((3, 30, 40), torch.uint8)
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert boxes.dtype == torch.float32
    assert boxes.canvas_size == (30, 40)
    assert boxes.tolist() == [[10, 5, 20, 25], [0, 0, 40, 30]]
    assert target["labels"].tolist() == [1, 2]
    assert target["area"].tolist() == [200, 1200]
    assert target["difficult"].tolist() == [True, True]
    assert target["truncated"].tolist() == [False, False]
    assert target["iscrowd"].tolist() == [False, False]
    assert target["image_id"] == 0
    assert data.sizes == [(30, 40)]


@pytest.mark.parametrize(
    ("box", "kind", "kept"),
    [
        ((5, 5, 5, 20), "zero-area box", None),
        ((5, 5, 5, 5), "zero-area box", None),
        ((9, 5, 5, 20), "inverted box", None),
        (("nan", 5, 9, 20), "non-numeric box", None),
        ((5, 5, "inf", 20), "non-numeric box", None),
        ((5, "", 9, 20), "non-numeric box", None),
        (("five", 5, 9, 20), "non-numeric box", None),
        ((45, 5, 60, 20), "box outside", None),
        ((5, 5, 50, 20), "box partly outside", [4, 4, 40, 20]),
        ((0, 0, 40, 30), None, [0, 0, 40, 30]),
        ((1.5, 1, 41, 30), None, [0.5, 0, 40, 30]),
    ],
)
def test_boxes_with_a_problem(voc_folder, box, kind, kept):
    root = one_image(voc_folder(), [GOOD, ("cat", box)])
    data = VOCDetection(root)
    assert data.target(0)["boxes"].tolist() == [[10, 5, 20, 25], *([kept] if kept else [])]
    if kind is None:
        assert len(data.problems) == 0
        VOCDetection(root, strict=True)
        return
    (problem,) = data.problems
    assert problem.path == root / "Annotations/a.xml"
    assert problem.kind == kind
    assert "object 2 (cat)" in problem.detail
    assert problem.action == ("clipped" if kept else "skipped")
    data[0]
    assert data.problems.counts() == {kind: 1}
    with pytest.raises(DataError, match=kind):
        VOCDetection(root, strict=True)


def test_two_bad_boxes_of_one_file_count_twice(voc_folder):
    root = one_image(voc_folder(), [GOOD, ("cat", (5, 5, 5, 9)), ("cat", (5, 5, 5, 9))])
    assert VOCDetection(root).problems.counts() == {"zero-area box": 2}


def test_missing_box_is_reported(voc_folder):
    root = one_image(voc_folder(), [GOOD])
    path = root / "Annotations/a.xml"
    path.write_text(path.read_text().replace("</annotation>", "<object><name>cat</name></object></annotation>"))
    assert VOCDetection(root).problems.counts() == {"non-numeric box": 1}


def damaged_folder(voc_folder):
    """Nine ids, of which only the first can be used."""
    folder = voc_folder()
    names = ["ok", "noimage", "noxml", "badxml", "entity", "notimage", "cut", "size", "ok"]
    for name in names:
        folder.image(name)
        folder.annotation(name, [GOOD])
    folder.split("train", names)
    images, annotations = folder.root / "JPEGImages", folder.root / "Annotations"
    (images / "noimage.jpg").unlink()
    (annotations / "noxml.xml").unlink()
    (annotations / "badxml.xml").write_text("<annotation><object>")
    (annotations / "entity.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    (images / "notimage.jpg").write_bytes(b"nothing")
    content = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(content[: len(content) // 2])
    folder.annotation("size", [GOOD], size=(30, 40))
    return folder


def test_files_with_a_problem(voc_folder):
    root = damaged_folder(voc_folder).root
    data = VOCDetection(root)
    assert data.ids == ["ok"]
    found = {(problem.path.relative_to(root).as_posix(), problem.kind) for problem in data.problems}
    assert found == {
        ("JPEGImages/noimage.jpg", "missing image"),
        ("Annotations/noxml.xml", "missing annotation"),
        ("Annotations/badxml.xml", "unreadable annotation"),
        ("Annotations/entity.xml", "unreadable annotation"),
        ("JPEGImages/notimage.jpg", "unreadable image"),
        ("JPEGImages/cut.jpg", "unreadable image"),
        ("Annotations/size.xml", "size mismatch"),
        ("ImageSets/Main/train.txt", "duplicate id"),
    }
    assert str(root / "JPEGImages/noimage.jpg") in data.problems.summary()
    with pytest.raises(DataError, match="noimage"):
        VOCDetection(root, strict=True)


def test_entities_are_refused_in_any_encoding(voc_folder):
    folder = voc_folder()
    root = one_image(folder, [GOOD])
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    (root / "Annotations/a.xml").write_bytes(bomb.encode("utf-16"))
    with pytest.raises(DataError, match="document type"):
        VOCDetection(root, classes=["cat"])


def test_huge_annotations_are_refused(voc_folder):
    root = one_image(voc_folder(), [GOOD])
    with (root / "Annotations/a.xml").open("ab") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(DataError, match="bytes is not accepted"):
        VOCDetection(root, classes=["cat"])


def test_pixels_damaged_inside_the_file(voc_folder, caplog):
    folder = voc_folder()
    for name in "abc":
        folder.image(name, suffix=".png")
        folder.annotation(name, [GOOD])
    folder.split("train", "abc")
    path = folder.root / "JPEGImages/b.png"
    content = bytearray(path.read_bytes())
    content[200:1200] = bytes(1000)
    path.write_bytes(content)
    data = VOCDetection(folder.root)
    assert len(data.problems) == 0
    with caplog.at_level(logging.WARNING, logger="pliant.data"):
        assert [data[index][1]["image_id"] for index in (0, 1, 2, 1)] == [0, 2, 2, 2]
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert data.problems.counts() == {"unreadable image": 1}
    strict = VOCDetection(folder.root, strict=True)
    with pytest.raises(DataError, match=r"b\.png"):
        strict[1]


def test_no_pixels_at_all(voc_folder):
    folder = voc_folder()
    root = one_image(folder, [GOOD])
    data = VOCDetection(root)
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no image can be read"):
        data[0]


def test_iteration_ends(voc_folder):
    data = VOCDetection(one_image(voc_folder(), [GOOD]))
    assert len(list(data)) == 1
    assert data[-1][1]["image_id"] == 0


def test_workers_survive_damaged_pixels(voc_folder):
    folder = voc_folder()
    for name in "abcd":
        folder.image(name)
        folder.annotation(name, [GOOD])
    folder.split("train", "abcd")
    data = VOCDetection(folder.root)
    (folder.root / "JPEGImages/c.jpg").write_bytes(b"")
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list)
    ids = [target["image_id"] for batch in loader for _, target in batch]
    assert ids == [0, 1, 3, 3]


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a"])
def test_ids_may_not_leave_the_folder(voc_folder, name):
    folder = voc_folder()
    root = one_image(folder, [GOOD])
    folder.split("train", [name])
    with pytest.raises(DataError, match="not a path inside"):
        VOCDetection(root)


def test_missing_folder_and_split(voc_folder, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        VOCDetection(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"looked for JPEGImages/.*found nothing"):
        VOCDetection(tmp_path / "empty")
    folder = voc_folder()
    root = one_image(folder, [GOOD])
    folder.split("cat_train", ["a"])
    with pytest.raises(DataError, match=r"no split 'test': looked for test.txt in .*Main; splits there: train$"):
        VOCDetection(root, "test")
    with pytest.raises(DataError, match="no split"):
        VOCDetection(root, "../Main/train")


def test_no_usable_image_says_why(voc_folder):
    folder = voc_folder()
    root = one_image(folder, [GOOD])
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(DataError, match=r"no usable image.*\n.*missing image: 1"):
        VOCDetection(root)
    folder.split("train", [])
    with pytest.raises(DataError, match=r"no usable image: none is listed$"):
        VOCDetection(root)
    folder.image("a")
    folder.annotation("a", [])
    folder.split("train", ["a"])
    with pytest.raises(DataError, match=r"no usable image: the one readable image has no box to train on \(a\.jpg\)$"):
        VOCDetection(root, classes=["cat"], require_boxes=True)


def test_classes_agree_between_splits(voc_folder):
    folder = voc_folder()
    for name, label in (("a", "zebra"), ("b", "ant")):
        folder.image(name)
        folder.annotation(name, [(label, (1, 1, 9, 9))])
    folder.split("train", ["a"])
    folder.split("test", ["b -1"])
    train, test = VOCDetection(folder.root, "train"), VOCDetection(folder.root, "test")
    assert train.classes == test.classes == ("ant", "zebra")
    assert train.target(0)["labels"].tolist() == [2]
    assert test.target(0)["labels"].tolist() == [1]
    joined = VOCDetection(folder.root, "train+test")
    assert joined.ids == ["a", "b"]
    assert joined.image_ids == [0, 1]


def test_given_classes_set_the_order_and_skip_others(voc_folder):
    root = one_image(voc_folder(), [GOOD, ("dog", (1, 1, 9, 9)), ("eel", (1, 1, 9, 9))])
    data = VOCDetection(root, classes=["eel", "cat"])
    assert data.target(0)["labels"].tolist() == [2, 1]
    assert data.problems.counts() == {"unknown class": 1}
    with pytest.raises(TypeError, match="sequence of names"):
        VOCDetection(root, classes="cat")
    with pytest.raises(ValueError, match="different names"):
        VOCDetection(root, classes=["cat", "cat"])


def test_images_without_boxes(voc_folder):
    folder = voc_folder()
    for name in "abc":
        folder.image(name)
    folder.annotation("a", [])
    folder.annotation("b", [GOOD], extra="<difficult>1</difficult>")
    folder.annotation("c", [GOOD])
    folder.split("train", "abc")
    data = VOCDetection(folder.root)
    assert data.ids == ["a", "b", "c"]
    empty = data[0][1]
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].dtype == torch.int64
    training = VOCDetection(folder.root, require_boxes=True, transforms=transforms.detection_train())
    assert training.ids == ["c"]
    assert training.image_ids == [2]


def test_image_found_by_other_suffix_and_by_file_name(voc_folder):
    folder = voc_folder()
    folder.image("a", suffix=".png")
    folder.annotation("a", [GOOD])
    folder.image("real", suffix=".jpeg")
    path = folder.annotation("b", [GOOD], size=(0, 0))
    path.write_text(path.read_text().replace("b.jpg", "C:\\somewhere\\real.jpeg"))
    folder.split("train", "ab")
    assert [path.name for path in VOCDetection(folder.root).paths] == ["a.png", "real.jpeg"]


def test_normalised_boxes_are_a_problem(voc_folder):
    root = one_image(voc_folder(), [GOOD, ("cat", ("0.1", "0.2", "0.5", "1.0"))])
    data = VOCDetection(root)
    assert data.class_counts() == [1]
    assert data.problems.counts() == {"normalised box": 1}


def turn(path, orientation=6):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


def test_exif_explains_a_size(voc_folder):
    folder = voc_folder()
    for name, orientation in (("turned", 6), ("mirrored", 2), ("told", 6)):
        turn(folder.image(name), orientation)
        folder.annotation(name, [GOOD], size=(30, 40) if name == "turned" else (40, 30))
    turn(folder.image("square", size=(30, 30)))
    folder.annotation("square", [GOOD], size=(30, 30))
    turn(folder.image("nosize"), 8)
    folder.annotation("nosize", [GOOD], size=None)
    folder.split("train", ["turned", "mirrored", "told", "square", "nosize"])
    data = VOCDetection(folder.root)
    (problem,) = data.problems
    assert problem.path.name == "turned.xml"
    assert "40x30 as stored: viewers rotate it by its EXIF orientation 6" in problem.detail
    assert {path.stem: number for path, number in data.turned.items()} == {"mirrored": 2, "square": 6, "nosize": 8}


def test_classes_without_a_box_are_named(voc_folder):
    folder = voc_folder()
    folder.image("a")
    folder.annotation("a", [GOOD])
    folder.image("b")
    folder.annotation("b", [("dog", (1, 1, 9, 9))], extra="<difficult>1</difficult>")
    folder.split("train", "ab")
    data = VOCDetection(folder.root, classes=["cat", "dog", "eel"])
    assert data.class_counts() == [1, 0, 0]
    assert data.absent() == "dog, eel: there is no box to learn from (boxes that are difficult or crowds: 1)"
    assert VOCDetection(folder.root, classes=["cat"]).absent() is None


def kit(voc_folder):
    for year, name, label in (("VOC2007", "000001", "dog"), ("VOC2012", "2008_000002", "cat")):
        folder = voc_folder(f"VOCdevkit/{year}")
        folder.image(name)
        folder.annotation(name, [(label, (1, 1, 9, 9))])
        folder.mask(name, np.full((30, 40), 2))
        folder.split("trainval", [name])
        folder.split("train", [name], "Segmentation")
    folder.split("val", [name])
    return folder.root.parent


def test_development_kit(voc_folder):
    root = kit(voc_folder)
    both = VOCDetection(root, "2007_trainval+2012_trainval")
    assert both.ids == ["000001", "2008_000002"]
    assert both.classes == VOC_CLASSES
    assert both.target(0)["labels"].tolist() == [VOC_CLASSES.index("dog") + 1]
    assert VOCDetection(root.parent, "trainval").ids == both.ids
    assert VOCDetection(root, "val").ids == ["2008_000002"]
    assert VOCDetection(root / "VOC2007", "trainval").classes == VOC_CLASSES
    with pytest.raises(DataError, match=r"no split '2007_val'.*splits there: trainval, val"):
        VOCDetection(root, "2007_val")
    assert VOCSegmentation(root).classes == ("background", *VOC_CLASSES)


def test_voc_names_in_a_folder_that_is_not_vocs(voc_folder):
    root = one_image(voc_folder(), [("person", (1, 1, 9, 9))])
    assert VOCDetection(root).classes == ("person",)


def test_bccd(shared):
    root = shared("bccd")
    data = VOCDetection(root, "trainval")
    assert len(data) == 292
    assert data.classes == ("Platelets", "RBC", "WBC")
    assert data.problems.counts() == {"zero-area box": 2}
    assert {problem.path.stem for problem in data.problems} == {"BloodImage_00338", "BloodImage_00343"}
    labels = torch.cat([data.target(index)["labels"] for index in range(len(data))])
    test = VOCDetection(root, "test", strict=True)
    assert len(test) == 72
    test_labels = torch.cat([test.target(index)["labels"] for index in range(len(test))])
    assert test_labels.bincount().tolist() == [0, 69, 805, 71]
    assert len(labels) + len(test_labels) == 4888 - 2
    image, target = data[0]
    assert image.shape == (3, 480, 640)
    assert target["boxes"][0].tolist() == [259, 176, 491, 376]
