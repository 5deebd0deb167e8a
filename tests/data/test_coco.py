import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pliant.data import COCODetection, DataError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
GOOD = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [10, 5, 10.5, 20], "area": 99.5, "iscrowd": 0}


def write(root, annotations, images=None, categories=CATEGORIES, split="val"):
    """A folder in COCO's layout with one image, a.jpg of 40 x 30, whose id is 10."""
    (root / split / "sub").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    for name in ("a.jpg", "sub/b.jpg"):
        Image.fromarray(noise).save(root / split / name)
    images = [{"id": 10, "file_name": "a.jpg", "width": 40, "height": 30}] if images is None else images
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def test_sample(tmp_path):
    crowd = {"image_id": 10, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1}
    path = write(tmp_path, [GOOD, crowd])
    data = COCODetection(tmp_path / "val", path)
    assert data.classes == ("cat", "dog")
    assert data.category_ids == {1: 3, 2: 7}
    image, target = data[0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].tolist() == [[10, 5, 20.5, 25], [0, 0, 40, 30]]
    assert target["labels"].tolist() == [1, 2]
    assert target["area"].tolist() == [99.5, 1200]
    assert target["iscrowd"].tolist() == [False, True]
    assert target["difficult"].tolist() == [False, False]
    assert target["image_id"] == 10
    assert target["labels"].dtype == torch.int64
    assert len(data.problems) == 0


@pytest.mark.parametrize(
    ("bbox", "kind", "kept"),
    [
        ([5, 5, 0, 9], "zero-area box", None),
        ([5, 5, 9, -1], "inverted box", None),
        ([5, 5, 9, math.nan], "non-numeric box", None),
        ([math.inf, 5, 9, 9], "non-numeric box", None),
        ([5, 5, 9], "non-numeric box", None),
        ([5, 5, "9", 9], "non-numeric box", None),
        ([5, 5, 10**400, 9], "non-numeric box", None),
        (None, "non-numeric box", None),
        ([50, 5, 9, 9], "box outside", None),
        ([30, 5, 20, 9], "box partly outside", [30, 5, 40, 14]),
        ([30, 5, 11, 9], None, [30, 5, 40, 14]),
    ],
)
def test_boxes_with_a_problem(tmp_path, bbox, kind, kept):
    path = write(tmp_path, [GOOD, {**GOOD, "id": 2, "bbox": bbox}])
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.target(0)["boxes"].tolist() == [[10, 5, 20.5, 25], *([kept] if kept else [])]
    assert data.problems.counts() == ({kind: 1} if kind else {})
    if kind:
        (problem,) = data.problems
        assert problem.path == path
        assert "annotation 2 of a.jpg" in problem.detail
        with pytest.raises(DataError, match=kind):
            COCODetection.from_folder(tmp_path, "val", strict=True)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({**GOOD, "id": 1}, "duplicate box"),
        ({**GOOD, "id": 2, "image_id": 11}, "missing image"),
        ({**GOOD, "id": 2, "category_id": 4}, "unknown class"),
        ({"id": 2, "bbox": [1, 1, 5, 5], "image_id": 10}, "unreadable annotation"),
        ({**GOOD, "id": 2, "image_id": "ten"}, "unreadable annotation"),
        ("text", "unreadable annotation"),
    ],
)
def test_annotations_with_a_problem(tmp_path, item, kind):
    write(tmp_path, [GOOD, item])
    data = COCODetection.from_folder(tmp_path, "val")
    assert len(data.target(0)["labels"]) == 1
    assert data.problems.counts() == {kind: 1}


def test_images_with_a_problem(tmp_path):
    images = [
        {"id": 10, "file_name": "a.jpg"},
        {"id": 10, "file_name": "a.jpg"},
        {"id": 11, "file_name": "missing.jpg"},
        {"id": 12, "file_name": "../val/a.jpg"},
        {"id": 13, "file_name": "sub/b.jpg", "width": 30, "height": 40},
        {"file_name": "a.jpg"},
        {"id": 14, "file_name": "broken.jpg"},
        {"id": 15, "file_name": "sub/b.jpg"},
        3,
    ]
    others = [{**GOOD, "id": number, "image_id": number} for number in (11, 12, 13)]
    write(tmp_path, [GOOD, *others], images)
    (tmp_path / "val/broken.jpg").write_bytes(b"nothing")
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.image_ids == [10, 15]
    assert data.problems.counts() == {
        "unreadable annotation": 3,
        "duplicate id": 1,
        "missing image": 1,
        "size mismatch": 1,
        "unreadable image": 1,
    }
    assert data.target(1)["boxes"].shape == (0, 4)
    assert COCODetection.from_folder(tmp_path, "val", require_boxes=True).image_ids == [10]


def test_given_classes(tmp_path):
    write(tmp_path, [GOOD, {**GOOD, "id": 2, "category_id": 7}])
    data = COCODetection.from_folder(tmp_path, "val", classes=["eel", "dog"])
    assert data.target(0)["labels"].tolist() == [2]
    assert data.category_ids == {2: 7}
    assert data.problems.counts() == {"unknown class": 1}


@pytest.mark.parametrize("content", ["", "[]", '{"images": []}', "[" * 100_000])
def test_what_is_no_coco_file(tmp_path, content):
    write(tmp_path, [GOOD]).write_text(content)
    with pytest.raises(DataError, match="instances_val"):
        COCODetection.from_folder(tmp_path, "val")


def test_categories(tmp_path):
    write(tmp_path, [GOOD], categories=[*CATEGORIES, {"id": 9, "name": "cat"}])
    with pytest.raises(DataError, match="two categories are called 'cat'"):
        COCODetection.from_folder(tmp_path, "val")
    write(tmp_path, [GOOD], categories=[*CATEGORIES, {"id": 3, "name": "eel"}])
    with pytest.raises(DataError, match="category 3 is called 'cat' and 'eel'"):
        COCODetection.from_folder(tmp_path, "val")
    write(tmp_path, [GOOD], categories=[*CATEGORIES, {"id": 3, "name": "cat"}, {"id": 4}])
    counts = COCODetection.from_folder(tmp_path, "val").problems.counts()
    assert counts == {"duplicate id": 1, "unreadable annotation": 1}
    write(tmp_path, [GOOD], categories=[])
    with pytest.raises(DataError, match="no categories"):
        COCODetection.from_folder(tmp_path, "val")


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="splits with annotations there: none"):
        COCODetection.from_folder(tmp_path, "val")
    path = write(tmp_path, [GOOD])
    with pytest.raises(DataError, match="splits with annotations there: val"):
        COCODetection.from_folder(tmp_path, "train")
    with pytest.raises(DataError, match="not a path inside"):
        COCODetection.from_folder(tmp_path, "../val")
    with pytest.raises(DataError, match="no such folder"):
        COCODetection(tmp_path / "nowhere", path)
    with pytest.raises(DataError, match="no such annotation file"):
        COCODetection(tmp_path / "val", tmp_path / "nowhere.json")


def test_images_below_a_common_folder(tmp_path):
    write(tmp_path, [GOOD])
    (tmp_path / "images").mkdir()
    (tmp_path / "val").rename(tmp_path / "images/val")
    assert len(COCODetection.from_folder(tmp_path, "val")) == 1


def boxes_of(number):
    """So many different boxes of the class cat, of which all have the id 1."""
    return [{**GOOD, "bbox": [3 * place, 5, 2, 9]} for place in range(number)]


def test_ids_of_annotations_are_not_needed(tmp_path):
    images = [{"id": 10, "file_name": "a.jpg"}, {"id": 11, "file_name": "sub/b.jpg"}]
    annotations = [{**item, "image_id": key} for key in (10, 11) for item in boxes_of(5)]
    write(tmp_path, annotations, images)
    data = COCODetection.from_folder(tmp_path, "val", strict=True)
    assert [len(data.target(index)["boxes"]) for index in range(2)] == [5, 5]
    for item in annotations:
        del item["id"]
    write(tmp_path, annotations, images)
    assert sum(data.class_counts()) == sum(COCODetection.from_folder(tmp_path, "val").class_counts()) == 10


def test_each_box_that_is_lost_counts_with_its_image(tmp_path):
    images = [{"id": 10, "file_name": "a.jpg"}, {"id": 11, "file_name": "sub/b.jpg"}]
    flat = {**GOOD, "bbox": [5, 5, 0, 9]}
    write(tmp_path, [GOOD, GOOD, GOOD, {**GOOD, "id": 2}, flat, flat, {**GOOD, "image_id": 11}], images)
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.class_counts() == [2, 0]
    assert data.problems.counts() == {"duplicate box": 3, "zero-area box": 2}
    assert all("of a.jpg" in problem.detail for problem in data.problems)
    # Of another class, another outline, or a crowd: not the same.
    others = [{**GOOD, "category_id": 7}, {**GOOD, "area": 50}, {**GOOD, "iscrowd": 1}]
    write(tmp_path, [GOOD, *others])
    assert len(COCODetection.from_folder(tmp_path, "val", strict=True).target(0)["boxes"]) == 4


def test_images_that_share_an_id_are_left_out(tmp_path):
    images = [
        {"id": 10, "file_name": "a.jpg"},
        {"id": 10, "file_name": "sub/b.jpg"},
        {"id": 10, "file_name": "c.png"},
        {"id": 11, "file_name": "d.png"},
    ]
    write(tmp_path, [GOOD, {**GOOD, "image_id": 11}], images)
    for name in ("c.png", "d.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "val" / name)
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.image_ids == [11]
    assert data.problems.counts() == {"duplicate id": 3}
    for problem, name in zip(data.problems, ("a.jpg", "sub/b.jpg", "c.png"), strict=True):
        assert str(tmp_path / "val" / name) in problem.detail


def test_a_file_that_is_listed_twice_is_one_image(tmp_path):
    images = [{"id": 10, "file_name": "a.jpg"}, {"id": 11, "file_name": ".\\a.jpg"}, {"id": 12, "file_name": "A.JPG"}]
    boxes = boxes_of(4)
    write(
        tmp_path,
        [boxes[0], *({**item, "image_id": key} for key, item in zip((10, 11, 12), boxes[1:], strict=True))],
        images,
    )
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.image_ids == [10]
    assert data.class_counts() == [4, 0]
    assert [(problem.kind, problem.action) for problem in data.problems] == [("duplicate image", "merged")] * 2


def test_ids_and_names_in_other_types(tmp_path):
    categories = [{"id": "3", "name": 7}, {"id": 7.0, "name": "dog"}]
    write(tmp_path, [{**GOOD, "image_id": "10", "category_id": 3.0}], [{"id": 10.0, "file_name": "a.jpg"}], categories)
    data = COCODetection.from_folder(tmp_path, "val", strict=True)
    assert data.classes == ("7", "dog")
    assert (data.image_ids, data.class_counts()) == ([10], [1, 0])


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.jpg", "sub%2Fb.jpg", "sub\\b.jpg", "val/a.jpg", "./sub//b.JPG", "caf\u00e9.png", "1"]
)
def test_names_of_files_as_others_write_them(tmp_path, name):
    write(tmp_path, [GOOD], [{"id": 10, "file_name": 1 if name == "1" else name}])
    for other in ("cafe\u0301.png", "1"):
        Image.new("RGB", (40, 30)).save(tmp_path / "val" / other, format="PNG")
    assert len(COCODetection.from_folder(tmp_path, "val", strict=True)) == 1


def test_a_missing_image_says_what_is_there_instead(tmp_path):
    write(tmp_path, [GOOD], [{"id": 10, "file_name": "a.jpg"}, {"id": 11, "file_name": "sub/b.png"}])
    (tmp_path / "val" / "c.png").symlink_to(tmp_path / "nowhere.png")
    data = COCODetection.from_folder(tmp_path, "val")
    (problem,) = data.problems
    assert problem.path == tmp_path / "val" / "sub" / "b.png"
    assert "there is b.jpg" in problem.detail
    write(tmp_path, [GOOD], [{"id": 10, "file_name": "a.jpg"}, {"id": 11, "file_name": "c.png"}])
    (problem,) = COCODetection.from_folder(tmp_path, "val").problems
    assert f"c.png is a link to {tmp_path / 'nowhere.png'}, which is not there" in problem.detail


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_other_encodings(tmp_path, encoding):
    path = write(tmp_path, [GOOD], categories=[{"id": 3, "name": "caf\u00e9"}])
    content = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    path.write_bytes(content.encode(encoding))
    assert COCODetection.from_folder(tmp_path, "val").classes == ("caf\u00e9",)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"instances_val\.json: not a JSON file: 'utf-8' codec"):
        COCODetection.from_folder(tmp_path, "val")


@pytest.mark.parametrize("bbox", [[0.1, 0.2, 0.5, 0.6], [0.9, 0.5, 0.4, 0.2], [0, 0, 1, 1]])
def test_normalised_boxes_are_a_problem(tmp_path, bbox):
    write(tmp_path, [GOOD, {**GOOD, "bbox": bbox}])
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.class_counts() == [1, 0]
    assert data.problems.counts() == {"normalised box": 1}
    write(tmp_path, [{**GOOD, "bbox": bbox}])
    with pytest.raises(DataError, match=r"(?s)no box to train on \(a\.jpg\); 1 problem.*normalised box"):
        COCODetection.from_folder(tmp_path, "val", require_boxes=True)
