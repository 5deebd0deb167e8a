"""Every form in which people keep their data gives the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import natural
import numpy as np
import pytest
from miniature import HEIGHT, WIDTH, scene
from PIL import Image

from pliant.data import DataError
from pliant.data.discovery import (
    WHOLE,
    Found,
    Survey,
    find_coco,
    find_coco_outlines,
    find_labelme,
    find_labelme_outlines,
    find_masks,
    find_tables,
    find_voc,
    find_yolo,
    find_yolo_outlines,
)
from pliant.data.discovery.split_names import split_word
from pliant.data.mask_values import MaskValues

FIND: dict[str, Callable[[Survey], Found | None]] = {
    "voc": find_voc,
    "coco": find_coco,
    "roboflow": find_coco,
    "yolo": find_yolo,
    "labelme": find_labelme,
    "csv": find_tables,
    "masks": find_masks,
}
FIND_OUTLINES: dict[str, Callable[[Survey], Found | None]] = {
    "coco": find_coco_outlines,
    "yolo": find_yolo_outlines,
    "labelme": find_labelme_outlines,
}


def found(form: str, root: Path, make: Any, find: Mapping[str, Callable[[Survey], Found | None]] = FIND) -> Found:
    make(root)
    result = find[form.partition("_")[0]](Survey.of(root))
    assert result is not None
    return result


@pytest.mark.parametrize("form", natural.DETECTION)
def test_every_form_of_detection_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    data = found(form, tmp_path, natural.DETECTION[form])
    assert sorted(data.splits()) == sorted(natural.SPLITS), data.title
    for split, indices in natural.SPLITS.items():
        dataset = data.open(split, strict=True, require_boxes=True)
        assert dataset.classes == natural.CLASSES
        assert sorted(data.images(split)) == sorted(dataset.paths)
        assert sorted(path.stem for path in dataset.paths) == [natural.name_of(i) for i in indices]
        for position, path in enumerate(dataset.paths):
            image, target = dataset[position]
            index = int(path.stem[-3:])
            assert np.array_equal(image.permute(1, 2, 0), scene(index)[0])
            np.testing.assert_allclose(target["boxes"].numpy(), [scene(index)[1]], atol=1e-4)
            assert target["labels"].tolist() == [natural.label_of(index)]


@pytest.mark.parametrize("form", natural.SEGMENTATION)
def test_every_form_of_masks_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    data = found(form, tmp_path, natural.SEGMENTATION[form])
    assert sorted(data.splits()) == sorted(natural.SPLITS), data.title
    for split, indices in natural.SPLITS.items():
        dataset = data.open(split, strict=True)
        assert dataset.classes == ("background", "class_1", "class_2")
        assert len(dataset) == len(indices)
        for position, path in enumerate(dataset.paths):
            index = int("".join(char for char in path.stem if char.isdigit()))
            x0, y0, x1, y1 = scene(index)[1]
            expected = np.zeros((HEIGHT, WIDTH))
            expected[y0:y1, x0:x1] = natural.label_of(index)
            assert np.array_equal(dataset[position][1], expected)


def mask_of(index: int) -> np.ndarray:
    x0, y0, x1, y1 = scene(index)[1]
    mask = np.zeros((HEIGHT, WIDTH))
    mask[y0:y1, x0:x1] = natural.label_of(index)
    return mask


@pytest.mark.parametrize("form", natural.OUTLINED)
def test_every_form_of_outlines_gives_the_same_masks(form: str, tmp_path: Path) -> None:
    data = found(form, tmp_path, natural.OUTLINED[form], FIND_OUTLINES)
    assert sorted(data.splits()) == sorted(natural.SPLITS), data.title
    assert data.title.endswith("; masks drawn from outlines")
    for split, indices in natural.SPLITS.items():
        dataset = data.open(split, strict=True)
        assert dataset.classes == ("background", *natural.CLASSES)
        assert sorted(path.stem for path in dataset.paths) == [natural.name_of(i) for i in indices]
        expected = [mask_of(int(path.stem[-3:])) for path in dataset.paths]
        assert all(np.array_equal(dataset[i][1], mask) for i, mask in enumerate(expected))
        assert dataset.class_counts() == [sum(int((mask == label).sum()) for mask in expected) for label in range(3)]


@pytest.mark.parametrize("form", sorted({*natural.DETECTION} - {*natural.OUTLINED}))
def test_boxes_alone_are_no_masks(form: str, tmp_path: Path) -> None:
    natural.DETECTION[form](tmp_path)
    survey = Survey.of(tmp_path)
    assert [find(survey) for find in FIND_OUTLINES.values()] == [None, None, None]


@pytest.mark.parametrize(
    ("form", "classes"),
    [("binary", ("background", "foreground")), ("colours", ("#000000", "#008000", "#c80000"))],
)
def test_values_of_masks_are_understood(form: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    data = found("masks", tmp_path, lambda root: natural.masks_split_outside(root, form))
    dataset = data.open("train", strict=True)
    assert dataset.classes == classes
    labels = [1 if form == "binary" else natural.label_of(i) for i in natural.SPLITS["train"]]
    assert [int(dataset[i][1].max()) for i in range(4)] == labels
    assert sum(dataset.class_counts()) == 4 * HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("train", "train"),
        ("stage1_train", "train"),
        ("TrainImages", "train"),
        ("train2017", "train"),
        ("VALID", "val"),
        ("testannot", "test"),
        ("train_val", "trainval"),
        ("training-set", "train"),
        ("images", None),
        ("train_test", None),
        ("constrained", None),
        ("latest", None),
    ],
)
def test_words_for_splits(name: str, word: str | None) -> None:
    assert split_word(name) == word


def test_data_without_splits_are_one_split(tmp_path: Path) -> None:
    natural.unsplit(natural.yolo_split_inside, tmp_path, ("images", "labels"))
    (tmp_path / "data.yaml").write_text("names: [green, red]\n")
    data = find_yolo(Survey.of(tmp_path))
    assert data is not None
    assert data.splits() == [WHOLE]
    assert len(data.open(WHOLE, strict=True)) == 8
    chosen = sorted(data.images(WHOLE))[2:5]
    assert data.open(WHOLE, only=chosen).paths == chosen
    with pytest.raises(DataError, match="no split 'train'; splits there: all"):
        data.open("train")


def test_one_of_several_masks_is_used_and_said(tmp_path: Path) -> None:
    data = found("masks", tmp_path, natural.masks_chase)
    assert len(data.open(WHOLE, strict=True)) == 8
    assert [note for note in data.notes if "is not used" in note]


def test_masks_of_single_objects_are_joined(tmp_path: Path) -> None:
    data = found("masks", tmp_path, natural.masks_of_objects)
    dataset = data.open(WHOLE, strict=True)
    assert dataset.classes == ("background", "foreground")
    assert dataset.class_counts()[1] == 8 * 30 * 28


def test_masks_in_jpeg_are_rounded_and_its_ids_are_refused(tmp_path: Path) -> None:
    for index in range(4):
        natural.image(tmp_path / "images" / f"{index}.jpg", index)
        natural.mask(tmp_path / "masks" / f"{index}.jpg", index, form="binary")
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    assert data.open(WHOLE, strict=True).class_counts()[1] == pytest.approx(4 * 30 * 28, rel=0.01)
    for index in range(4):
        Image.new("L", (WIDTH, HEIGHT), 100).save(tmp_path / "masks" / f"{index}.jpg")
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    with pytest.raises(DataError, match="only masks of 0 and 255 can be read from it"):
        data.open(WHOLE)


def test_palettes_that_differ_are_colours(tmp_path: Path) -> None:
    for index in range(2):
        natural.image(tmp_path / "images" / f"{index}.png", index)
        ids = np.full((HEIGHT, WIDTH), index, dtype=np.uint8)
        ids[:10] = 1 - index
        picture = Image.fromarray(ids)
        picture.putpalette([[0, 0, 0], [9, 200, 9]][index] + [[0, 0, 0], [9, 200, 9]][1 - index])
        (tmp_path / "labels").mkdir(exist_ok=True)
        picture.save(tmp_path / "labels" / f"{index}.png")
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    dataset = data.open(WHOLE, strict=True)
    assert dataset.classes == ("#000000", "#09c809")
    assert dataset.class_counts() == [2 * (HEIGHT - 10) * WIDTH, 2 * 10 * WIDTH]


def test_a_void_class_is_pointed_out(tmp_path: Path) -> None:
    natural.masks_camvid(tmp_path)
    path = tmp_path / "valannot" / f"{natural.name_of(4)}.png"
    Image.fromarray(np.where(np.asarray(Image.open(path)) == 0, 11, 1).astype(np.uint8)).save(path)
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    data.open("train")
    assert "ignored_ids=11" in data.notes[-1]


def test_of_lists_in_several_folders_the_longest_is_used(tmp_path: Path) -> None:
    natural.voc_other_names(tmp_path)
    place = tmp_path / "lists" / "Layout"
    place.mkdir(parents=True)
    (place / "train.txt").write_text(f"{natural.name_of(0)}\n")
    (place / "cat_train.txt").write_text(f"{natural.name_of(0)} -1\n")
    data = find_voc(Survey.of(tmp_path))
    assert data is not None
    assert {split: len(data.images(split)) for split in data.splits()} == {"train": 4, "val": 2, "test": 2}


def test_a_folder_around_everything_is_no_split(tmp_path: Path) -> None:
    natural.unsplit(natural.yolo_split_inside, tmp_path / "test_project", ("images", "labels"))
    data = find_yolo(Survey.of(tmp_path))
    assert data is not None
    assert data.splits() == [WHOLE]


def test_defects_of_yolo_are_problems_with_their_lines(tmp_path: Path) -> None:
    natural.yolo_beside(tmp_path)
    path = tmp_path / "obj" / f"{natural.name_of(0)}.txt"
    good = path.read_text()
    lines = [
        "0 0.5 0.5 0.2",
        "7 0.5 0.5 0.2 0.2",
        "x 0.5 0.5 0.2 0.2",
        "0 40 30 20 20",
        "0 0.5 0.5 0 0.2",
        "0 nan 0 1 1",
    ]
    path.write_text("".join(f"{line}\n" for line in lines) + good + good)
    natural.txt(path.with_name("lost.txt"), 1)
    data = find_yolo(Survey.of(tmp_path))
    assert data is not None
    dataset = data.open("train")
    assert dataset.problems.counts() == {
        "unreadable annotation": 2,
        "unknown class": 1,
        "not normalised box": 1,
        "zero-area box": 1,
        "non-numeric box": 1,
        "duplicate box": 1,
    }
    assert all(problem.path == path and "line " in problem.detail for problem in dataset.problems)
    assert dataset.class_counts() == [2, 2]
    path.write_bytes(b"\xff\xfe\x00")
    data = find_yolo(Survey.of(tmp_path))
    assert data is not None
    (problem,) = data.open("train").problems
    assert "1 image is left out" in data.notes[-1]
    assert "lost.txt" in data.notes[-1]
    assert (problem.path, problem.kind) == (path, "unreadable annotation")


def numbered(root: Path, values: Callable[[int, int], int], *, images: int = 6) -> Found:
    """Masks of 9 to 14 objects, of which number `n` of image `i` has the value `values(i, n)`."""
    for index in range(images):
        natural.image(root / "images" / f"{index}.png", index)
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
        for number in range(9 + index % 6):
            row, column = divmod(number, 5)
            mask[2 + 12 * row : 10 + 12 * row, 2 + 12 * column : 10 + 12 * column] = values(index, number)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    data = find_masks(Survey.of(root))
    assert data is not None
    return data


@pytest.mark.parametrize(
    "values",
    [lambda i, n: n + 1, lambda i, n: 1000 * i + n + 1, lambda i, n: 37 * (15 * i + n) + 5],
    ids=["from 1 in each mask", "from another number in each mask", "numbers of all objects"],
)
def test_masks_that_number_objects_have_one_class(values: Callable[[int, int], int], tmp_path: Path) -> None:
    data = numbered(tmp_path, values)
    dataset = data.open(WHOLE, strict=True)
    assert dataset.classes == ("background", "foreground")
    assert dataset.class_counts()[1] == 64 * sum(9 + i for i in range(6))
    (note,) = data.notes
    assert "each object of a mask has its own value, up to 14 in one mask" in note
    assert "--set mask_values=0:background,*:NAME" in note
    renamed = data.open(WHOLE, strict=True, values=MaskValues.given(("0:background", "*:cell")))
    assert (renamed.classes, renamed.class_counts()) == (("background", "cell"), dataset.class_counts())


def test_numbered_objects_in_colours_have_one_class(tmp_path: Path) -> None:
    numbered(tmp_path, lambda i, n: 15 * i + n + 1)
    for path in (tmp_path / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        colours = np.random.default_rng(0).integers(20, 250, (100, 3), dtype=np.uint8)
        Image.fromarray(np.where(ids[..., None] > 0, colours[ids], 0).astype(np.uint8)).save(path)
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    assert data.open(WHOLE, strict=True).class_counts()[1] == 64 * sum(9 + i for i in range(6))
    assert "mask_values=#000000:background,*:NAME" in data.notes[0]


@pytest.mark.parametrize(
    "values",
    [lambda i, n: (n * (i + 3)) % 12 + 1, lambda i, n: n // 2 + 1],
    ids=["classes of which some are absent", "several pieces of a class"],
)
def test_classes_are_no_numbers_of_objects(values: Callable[[int, int], int], tmp_path: Path) -> None:
    data = numbered(tmp_path, values)
    assert len(data.open(WHOLE).classes) > 2
    assert data.notes == []


@pytest.mark.parametrize(("masks", "recognised"), [(6, False), (24, True)])
def test_few_objects_are_numbers_in_many_masks(masks: int, recognised: bool, tmp_path: Path) -> None:
    for index in range(masks):
        natural.image(tmp_path / "images" / f"{index}.png", index % 8)
        ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for number in range(1 + index % 4):
            ids[2:8, 12 * number : 12 * number + 8] = number + 1
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "masks" / f"{index}.png")
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    assert (len(data.open(WHOLE, strict=True).classes) == 2) is recognised


def test_values_that_the_user_names_are_classes(tmp_path: Path) -> None:
    data = numbered(tmp_path, lambda i, n: n + 1)
    names = ("background", *(f"tooth {n}" for n in range(1, 15)))
    assert data.open(WHOLE, strict=True, classes=names).classes == names
    assert data.notes == []
    assert len(data.open(WHOLE, strict=True).classes) == 2
    (tmp_path / "classes.txt").write_text("\n".join(names))
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    assert data.open(WHOLE, strict=True).classes == names


@pytest.mark.parametrize("values", [("*:cell",), ("0:a", "*:b", "*:c"), ("x:cell",)])
def test_wrong_meanings_of_values_are_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="mask_values"):
        MaskValues.given(values)


def test_classes_of_values_are_read_from_a_table(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for index in (0, 1):
            natural.image(tmp_path / split / f"{index}_jpg.rf.0{index}.jpg", index)
            natural.mask(tmp_path / split / f"{index}_jpg.rf.0{index}_mask.png", index)
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, leaf\n2, stem\n")
    data = find_masks(Survey.of(tmp_path))
    assert data is not None
    assert data.open("train").classes == ("ground", "leaf", "stem")
