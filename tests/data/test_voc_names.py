"""Lists, endings and encodings as people write them: the file that is meant is found, or its problem says why not."""

import numpy as np
import pytest

from pliant.data import DataError, VOCDetection, VOCSegmentation

GOOD = ("cat", (11, 6, 20, 25))


def listed(folder, names, content, there=None):
    """What a list with this content reads, in a folder of images and annotations of these names."""
    for name in names if there is None else there:
        folder.image(name)
        folder.annotation(name, [GOOD])
    (folder.root / "ImageSets/Main/train.txt").write_bytes(content.encode())
    return VOCDetection(folder.root)


@pytest.mark.parametrize(
    ("names", "content"),
    [
        (["photo 0", "photo 1", "photo -1"], "photo 0\nphoto 1\nphoto -1"),
        (["a", "b"], "a -1\nb  1\n"),
        (["photo 1", "photo"], "photo 1\nphoto 0\n"),  # line by line: a name, and a name with a label
        (["photo 1", "b"], "photo 1 -1\nb 1\n"),
        (["two  spaces", "tail"], "two  spaces\n  tail \t\n"),
        (["a", "b.c"], "a.jpg\nb.c.JPG\n"),
        (["a", "b"], "a.xml\nb.jpg 1\n"),
        (["a", "sub/b"], "JPEGImages/a.jpg\nAnnotations\\sub\\b.xml\n"),
        (["a", "sub/b"], "a\r\n\r\nsub\\b\r\n"),
        (["a", "b"], "a\rb\r"),
        (["a", "#b"], "# the images\n#\na\n#b\n"),
        (["a"], "A\n"),
    ],
)
def test_lines_of_a_list(voc_folder, names, content):
    folder = voc_folder()
    for place in ("JPEGImages", "Annotations"):
        (folder.root / place / "sub").mkdir()
    data = listed(folder, names, content)
    assert [path.stem for path in data.paths] == [name.rpartition("/")[2] for name in names]
    assert len(data.problems) == 0


def test_lines_that_name_no_file(voc_folder):
    data = listed(voc_folder("a"), ["a"], "a\nphoto 1\n")
    assert [problem.path.name for problem in data.problems] == ["photo 1.xml"]
    data = listed(voc_folder("b"), ["a"], "a 1\nphoto 1\n")  # all lines have a label
    assert [problem.path.name for problem in data.problems] == ["photo.xml"]


def test_each_line_that_comes_again_counts(voc_folder):
    data = listed(voc_folder(), ["a"], "a\na\na\na.jpg\n")
    assert data.ids == ["a"]
    assert [problem.detail[:7] for problem in data.problems] == ["line 2:", "line 3:", "line 4:"]


def test_names_that_differ_in_case_alone(voc_folder, tmp_path):
    (tmp_path / "case").touch()
    if (tmp_path / "CASE").exists():
        pytest.skip("this file system does not tell case apart")
    folder = voc_folder()
    data = listed(folder, ["a", "A"], "a\nA\n")
    assert [path.name for path in data.paths] == ["a.jpg", "A.jpg"]
    assert len(data.problems) == 0
    # The same name for another file only where it is the only one.
    data = listed(voc_folder("other"), [], "ab\nBa\n", there=["aB", "Ab", "ba"])
    assert [path.name for path in data.paths] == ["ba.jpg"]
    (problem,) = data.problems
    assert "there is Ab.xml, aB.xml" in problem.detail


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_annotations_and_names_of_classes_in_other_encodings(voc_folder, encoding):
    folder = voc_folder()
    folder.mask("café", np.ones((30, 40)))
    folder.image("café")
    text = folder.annotation("café", [GOOD]).read_text()
    declared = f'<?xml version="1.0" encoding="utf-8"?>{text}'
    (folder.root / "Annotations/café.xml").write_bytes(declared.replace("cat", "žlutý").encode(encoding))
    for task in ("Main", "Segmentation"):
        (folder.root / "ImageSets" / task / "train.txt").write_bytes("café\r\n".encode(encoding))
    (folder.root / "classes.txt").write_bytes("background\ncafé\n".encode(encoding))
    assert VOCDetection(folder.root, strict=True).classes == ("žlutý",)
    assert VOCSegmentation(folder.root, strict=True).classes == ("background", "café")


def test_other_encodings_are_named(voc_folder):
    root = listed(voc_folder(), ["a"], "a").root
    path = root / "ImageSets/Main/train.txt"
    for content, said in (
        ("a\ncafé".encode("latin-1"), "expected UTF-8, got the byte 0xe9 in line 2"),
        ("a\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"\xff\xfea", "byte order mark of UTF-16, but is not in UTF-16"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"train\.txt: the split cannot be read: .*{said}"):
            VOCDetection(root)
    path.write_text("a")
    annotation = root / "Annotations/a.xml"
    annotation.write_bytes(annotation.read_text().replace("cat", "café").encode("latin-1"))
    with pytest.raises(DataError, match="it is not in UTF-8, so its declaration must name the encoding"):
        VOCDetection(root, classes=["cat"])


def test_endings_in_any_case(voc_folder):
    folder = voc_folder()
    root = listed(folder, ["a"], "a").root
    folder.mask("a", np.ones((30, 40)))
    folder.split("train", ["a"], "Segmentation")
    for place, name in (("JPEGImages", "a.JPG"), ("Annotations", "a.Xml"), ("SegmentationClass", "a.PNG")):
        (path,) = (root / place).iterdir()
        path.rename(path.with_name(name))
    for task in ("Main", "Segmentation"):
        (root / "ImageSets" / task / "train.txt").rename(root / "ImageSets" / task / "train.TXT")
    assert VOCDetection(root, strict=True).classes == ("cat",)
    assert VOCSegmentation(root, strict=True).classes == ("background", "class_1")
