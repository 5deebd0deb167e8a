"""Annotations and lists that are broken, lie, or want to do harm: one problem with its path, or a `DataError`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.bounded import memory_limit
from PIL import Image
from torchvision import tv_tensors

from pliant.data import COCODetection, DataError, ImageFolder, VOCDetection, transforms

GOOD = ("cat", (11, 6, 20, 25))
BOX = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [10, 5, 10, 20]}
IMAGE = {"id": 10, "file_name": "a.png"}
CAT = {"id": 3, "name": "cat"}


def voc(folder: Any, annotation: bytes | None = None) -> Path:
    """A good image and annotation, `good`, and another image, `a`, with these bytes for an annotation."""
    for name in ("good", "a"):
        folder.image(name)
        folder.annotation(name, [GOOD])
    if annotation is not None:
        (folder.root / "Annotations" / "a.xml").write_bytes(annotation)
    folder.split("train", ["good", "a"])
    return folder.root


def laughs() -> bytes:
    entities = ['<!ENTITY e0 "ha">', *(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))]
    return f"<!DOCTYPE a [{''.join(entities)}]><annotation><filename>&e11;</filename></annotation>".encode()


def external(what: str) -> bytes:
    return f"<!DOCTYPE a [{what}]><annotation><object><name>&x;</name></object></annotation>".encode()


@pytest.mark.parametrize(
    ("annotation", "detail"),
    [
        (b"", "no element found"),
        (b"\0" * 64, "not well-formed"),
        (b"<annotation>", "no element found"),
        (b"<annotation/>" * 2, "junk after document element"),
        (b"<html/>", "expected the element 'annotation'"),
        (b'<?xml version="1.0" encoding="utf-99"?><annotation/>', "not well-formed XML"),
        (b'<?xml version="1.0" encoding="idna"?><annotation/>', ""),
        (laughs(), "document type"),
        (laughs().decode().encode("utf-16"), "document type"),
        (b'<!DOCTYPE a [<!ENTITY x "' + b"h" * 10**6 + b'">]><annotation>' + b"&x;" * 10**5 + b"</annotation>", "docu"),
        (external('<!ENTITY x SYSTEM "file:///etc/passwd">'), "document type"),
        (external('<!ENTITY x SYSTEM "http://127.0.0.1:9/x">'), "document type"),
        (external('<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;'), "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///dev/zero"><annotation/>', "document type"),
        (b"<annotation>&undefined;</annotation>", "undefined entity"),
        (b"<annotation>" + b"<a>" * 10**6 + b"</a>" * 10**6 + b"</annotation>", "bytes is not accepted"),
        (b"<a>" * 500_000 + b"</a>" * 500_000, "expected the element 'annotation'"),
        (b"<annotation " + b" ".join(b'a%d=""' % i for i in range(50_000)) + b"><", "not well-formed"),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_xml_that_is_none_or_a_bomb_is_one_problem(voc_folder: Any, annotation: bytes, detail: str) -> None:
    root = voc(voc_folder(), annotation)
    with memory_limit(300):
        data = VOCDetection(root)
    assert data.ids == ["good"]
    (problem,) = data.problems
    assert problem.kind == "unreadable annotation"
    assert problem.path == root / "Annotations" / "a.xml"
    assert detail in problem.detail
    assert "root:" not in data.problems.summary()


def test_xml_of_many_elements_is_read_in_bounded_memory(voc_folder: Any) -> None:
    filler = b"<a b=''/>" * 400_000
    root = voc(voc_folder(), b"<annotation>" + filler + b"</annotation>")
    with memory_limit(300):
        data = VOCDetection(root)
    assert data.ids == ["good", "a"]


@pytest.mark.parametrize("number", ["9" * 10**5, "-1e999", "1e308", "0x10", "nan", "١", "1" + "\u200b"])
def test_numbers_that_are_none_or_too_large(voc_folder: Any, number: str) -> None:
    folder = voc_folder()
    folder.image("a")
    path = folder.annotation("a", [GOOD, ("cat", (5, 5, number, 20))])
    folder.split("train", ["a"])
    data = VOCDetection(folder.root)
    boxes = data.target(0)["boxes"]
    assert boxes.isfinite().all()
    assert boxes[0].tolist() == [10, 5, 20, 25]
    assert len(data.problems) == 1
    (problem,) = data.problems
    assert problem.path == path
    assert len(problem.detail) < 400


@pytest.mark.parametrize("field", ["name", "filename"])
def test_long_and_strange_names_in_xml(voc_folder: Any, field: str) -> None:
    root = voc(voc_folder())
    path = root / "Annotations" / "a.xml"
    for text in ("x" * 10**6, "../../../etc/passwd", "/etc/passwd", "[/red]", "a&#10;b"):
        path.write_text(f"<annotation><object><name>q</name></object><{field}>{text}</{field}></annotation>")
        data = VOCDetection(root, classes=["cat"])
        assert data.ids == ["good", "a"]
        assert data.problems.counts() == {"unknown class": 1}
    (root / "JPEGImages" / "a.jpg").unlink()
    for text in ("x" * 10**6, "../../../../../../../../etc/passwd", "/etc/passwd", "..", "a&#10;b"):
        path.write_text(f"<annotation><filename>{text}</filename></annotation>")
        assert VOCDetection(root).problems.counts() == {"missing image": 1}


@pytest.mark.parametrize(
    ("line", "kind"),
    [("nowhere", "missing annotation"), ("x" * 5000, "missing annotation"), ("é\u202e", "missing annotation")],
)
def test_a_list_of_what_is_not_there(voc_folder: Any, line: str, kind: str) -> None:
    folder = voc_folder()
    root = voc(folder)
    folder.split("train", ["good", line])
    data = VOCDetection(root)
    assert data.problems.counts() == {kind: 1}
    folder.split("train", [line] * 3)
    with pytest.raises(DataError, match="no usable image"):
        VOCDetection(root)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\0", b"../a\n", b"/etc/passwd\n", b"a\0b\n", b"\0" * 100])
def test_a_list_that_is_none(voc_folder: Any, content: bytes) -> None:
    root = voc(voc_folder())
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"no usable image|not a path inside|cannot be read"):
        VOCDetection(root)


def coco(root: Path, content: Any) -> Path:
    """A folder in COCO's layout with one image, a.png of 40 x 30."""
    (root / "val").mkdir(exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(root / "val" / "a.png")
    path = root / "annotations" / "instances_val.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def sections(images: Any = (IMAGE,), annotations: Any = (BOX,), categories: Any = (CAT,)) -> dict[str, Any]:
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "NaN",
        "[" * 10**6,
        '{"images":' * 10**5,
        "[" * 50_000 + "]" * 50_000,
        '{"images": [' + "9" * 10**6 + '], "annotations": [], "categories": []}',
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": []}',
        json.dumps(sections(images=[])),
        json.dumps(sections(categories=[])),
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=lambda content: content[:20],
)
def test_json_that_is_none_or_a_bomb_is_a_data_error(tmp_path: Path, content: str) -> None:
    path = coco(tmp_path, content)
    with memory_limit(200), pytest.raises(DataError) as caught:
        COCODetection.from_folder(tmp_path, "val")
    assert caught.value.path in (path, tmp_path / "val")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"file_name": "a.png"}, "unreadable annotation"),
        ({"id": None, "file_name": "a.png"}, "unreadable annotation"),
        ({"id": "x10", "file_name": "a.png"}, "unreadable annotation"),
        ({"id": 10.5, "file_name": "a.png"}, "unreadable annotation"),
        ({"id": True, "file_name": "a.png"}, "unreadable annotation"),
        ({"id": 2**53, "file_name": "a.png"}, "unreadable annotation"),
        ({"id": 10**400, "file_name": "a.png"}, "unreadable annotation"),
        ({"id": 11}, "unreadable annotation"),
        ({"id": 11, "file_name": ["a.png"]}, "unreadable annotation"),
        ({"id": 11, "file_name": ""}, "unreadable annotation"),
        ({"id": 11, "file_name": "a\0.png"}, "unreadable annotation"),
        ({"id": 11, "file_name": "\ud800.png"}, "unreadable annotation"),
        ({"id": 11, "file_name": "../val/a.png"}, "unreadable annotation"),
        ({"id": 11, "file_name": "..\\val\\a.png"}, "unreadable annotation"),
        ({"id": 11, "file_name": "/etc/passwd"}, "unreadable annotation"),
        ({"id": 11, "file_name": "C:\\a.png"}, "unreadable annotation"),
        ({"id": 11, "file_name": "x" * 5000}, "missing image"),
        ({"id": 11, "file_name": "nowhere.png"}, "missing image"),
        ({"id": 11, "file_name": "https://example.com/a.png"}, "missing image"),
        ({"id": 11, "file_name": "."}, "unreadable annotation"),
        ({"id": 11, "file_name": "a.png", "width": 30, "height": 40}, "size mismatch"),
        ({"id": 10, "file_name": "a.png"}, "duplicate id"),
        (None, "unreadable annotation"),
        ([[[]]], "unreadable annotation"),
    ],
)
def test_images_of_coco_with_a_problem(tmp_path: Path, item: Any, kind: str) -> None:
    coco(tmp_path, sections(images=[IMAGE, item]))
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.image_ids == [10]
    assert data.problems.counts() == {kind: 1}
    data.problems.summary().encode()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"id": 1}, "duplicate box"),
        ({"image_id": None}, "unreadable annotation"),
        ({"image_id": 10**30}, "unreadable annotation"),
        ({"image_id": -10}, "missing image"),
        ({"category_id": "cat"}, "unreadable annotation"),
        ({"category_id": 4}, "unknown class"),
        ({"bbox": [math.nan] * 4}, "non-numeric box"),
        ({"bbox": [0, 0, math.inf, 5]}, "non-numeric box"),
        ({"bbox": [-math.inf, 0, 5, 5]}, "non-numeric box"),
        ({"bbox": [1e308, 1e308, 1e308, 1e308]}, "non-numeric box"),
        ({"bbox": [10**400, 0, 5, 5]}, "non-numeric box"),
        ({"bbox": [True, 0, 5, 5]}, "non-numeric box"),
        ({"bbox": {}}, "non-numeric box"),
        ({"bbox": [[1], [2], [3], [4]]}, "non-numeric box"),
        ({"bbox": []}, "non-numeric box"),
        ({"bbox": [0] * 10**5}, "non-numeric box"),
        ({"bbox": [9, 9, -5, 5]}, "inverted box"),
        ({"bbox": [9, 9, 5, -5]}, "inverted box"),
        ({"bbox": [9, 9, 0, 5]}, "zero-area box"),
        ({"bbox": [9, 9, 1e-320, 5]}, "zero-area box"),
        ({"bbox": [-30, -30, 5, 5]}, "box outside"),
        ({"bbox": [-1e300, -1e300, 2e300, 2e300]}, "box partly outside"),
    ],
)
def test_annotations_of_coco_with_a_problem(tmp_path: Path, change: dict[str, Any], kind: str) -> None:
    path = coco(tmp_path, sections(annotations=[BOX, {**BOX, "id": 2, **change}]))
    data = COCODetection.from_folder(tmp_path, "val", transforms=transforms.detection_train())
    assert data.problems.counts() == {kind: 1}
    (problem,) = data.problems
    assert problem.path == path
    assert len(problem.detail) < 1000
    boxes = data[0][1]["boxes"]
    assert len(boxes) == (2 if kind == "box partly outside" else 1)
    assert boxes.isfinite().all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([40, 30, 40, 30])).all()


@pytest.mark.parametrize("area", [10**400, 1e300, math.nan, math.inf, -1, 0, "200", None, [1], 1201])
def test_an_area_that_cannot_be_is_the_boxs_own(tmp_path: Path, area: Any) -> None:
    coco(tmp_path, sections(annotations=[{**BOX, "area": area}]))
    assert COCODetection.from_folder(tmp_path, "val").target(0)["area"].tolist() == [200]


@pytest.mark.parametrize("name", [None, True, 3.5, "", "\udfff", ["cat"]])
def test_categories_without_a_usable_name(tmp_path: Path, name: Any) -> None:
    coco(tmp_path, sections(categories=[CAT, {"id": 4, "name": name}, {"name": "dog"}, 7]))
    data = COCODetection.from_folder(tmp_path, "val")
    assert data.classes == ("cat",)
    assert data.problems.counts() == {"unreadable annotation": 3}


def test_links_are_followed_since_data_sets_are_made_of_them(tmp_path: Path) -> None:
    coco(tmp_path, sections(images=[{"id": 10, "file_name": "link.png"}]))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "val" / "a.png").rename(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "val" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert len(COCODetection.from_folder(tmp_path, "val")) == 1
    # What a link leads to is opened as an image and nothing else.
    (tmp_path / "val" / "link.png").unlink()
    (tmp_path / "val" / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"no usable image.*\n.*unreadable image: 1"):
        COCODetection.from_folder(tmp_path, "val")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders here")
def test_annotations_that_are_no_files_are_never_waited_for(voc_folder: Any, tmp_path: Path) -> None:
    root = voc(voc_folder())
    os.mkfifo(root / "Annotations" / "pipe.xml")
    (root / "Annotations" / "endless.xml").symlink_to("/dev/zero")
    with memory_limit(100):
        data = VOCDetection(root)
    assert data.ids == ["good", "a"]
    path = coco(tmp_path, sections())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="no split 'val'"):
        COCODetection.from_folder(tmp_path, "val")


def test_empty_data_sets(voc_folder: Any, tmp_path: Path) -> None:
    folder = voc_folder()
    with pytest.raises(DataError, match="no split 'train'"):
        VOCDetection(folder.root)
    with pytest.raises(DataError, match="there is no split 'train'"):
        ImageFolder(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no usable image.*\n.*empty class: 1"):
        ImageFolder(tmp_path)


def test_class_folders_whose_names_are_no_text(tmp_path: Path) -> None:
    for name in (b"cat", b"c\xff\xfet"):
        folder = os.path.join(os.fsencode(tmp_path), b"train", name)
        try:
            os.makedirs(folder)
        except OSError:
            pytest.skip("this file system only takes names in UTF-8")
        Image.new("L", (4, 4)).save(Path(os.fsdecode(folder)) / "a.png")
    data = ImageFolder(tmp_path)
    assert data.classes == ("cat",)
    assert data.problems.counts() == {"unknown class": 1}
    data.problems.summary().encode()


def test_random_damage_to_annotations(voc_folder: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    root = voc(voc_folder())
    xml = root / "Annotations" / "a.xml"
    file = coco(tmp_path, sections(annotations=[BOX, {**BOX, "id": 2}]))
    for path, read in ((xml, lambda: VOCDetection(root)), (file, lambda: COCODetection.from_folder(tmp_path, "val"))):
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        read_whole = 0
        for _ in range(300):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), rng.integers(1, 4))] = rng.choice(
                list(b'0123456789-e.<>/"[]{}:, \0\xff')
            )
            path.write_bytes(damaged.tobytes())
            try:
                data = read()
            except DataError:
                continue
            read_whole += 1
            boxes = [data.target(index)["boxes"] for index in range(len(data))]
            assert all(isinstance(each, tv_tensors.BoundingBoxes) and each.isfinite().all() for each in boxes)
        assert read_whole > 20
