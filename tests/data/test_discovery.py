"""Every form in which people keep their data gives the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import natural
import numpy as np
import pytest
from miniature import HEIGHT, WIDTH, scene

from pliant.data import DataError
from pliant.data.discovery import WHOLE, Found, Survey, find_coco, find_masks, find_voc, find_yolo
from pliant.data.discovery.split_names import split_word

FIND = {"voc": find_voc, "coco": find_coco, "roboflow": find_coco, "yolo": find_yolo, "masks": find_masks}


def found(form: str, root: Path, make: Any) -> Found:
    make(root)
    result = FIND[form.partition("_")[0]](Survey.of(root))
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
