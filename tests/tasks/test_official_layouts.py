"""VOC with SBD, COCO and Cityscapes on their official layouts: opened, checked, trained and judged on."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as theirs
from click.testing import Result
from typer.testing import CliRunner

from pliant.cli import app
from pliant.data import CityscapesSegmentation, COCODetection, DataError, VOCDetection, VOCSegmentation
from pliant.recipes import find_recipe
from pliant.tasks.splits import Splits, choose_splits

TINY = (
    "backbone=timm/resnet10t",
    "weights=random",
    "max_steps=2",
    "batch_size=2",
    "short_side=48",
    "max_side=64",
    "lr=0.001",
    "accelerator=cpu",
)

WEIGHTS = ("--set", "weights=random")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("official")
    voc = miniature.make_devkit(base / "voc")
    miniature.make_sbd(voc / "benchmark_RELEASE" / "dataset")
    coco = miniature.make_coco(base / "coco", {"train2014": 3, "val2014": 2})
    miniature.make_test_dev(coco)
    return {"voc": voc, "coco": coco, "cityscapes": miniature.make_cityscapes(base / "city", {"train": 3, "val": 2})}


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


EXPECTED = {
    "voc.rfcn": Splits("2007_trainval+2012_trainval", None, "2007_test"),
    "voc.deeplab": Splits("2012_train+sbd", None, "2012_val"),
    "coco.rfcn": Splits("train2014+val2014", None, "test-dev2015"),
    "cityscapes.deeplab": Splits("train", None, "val"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_finds_its_splits(name: str, roots: dict[str, Path]) -> None:
    assert choose_splits(find_recipe(name), roots[name.split(".")[0]]) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_check_counts_what_is_there(name: str, roots: dict[str, Path]) -> None:
    result = run("check", name, "--data", roots[name.split(".")[0]], "--deep", *WEIGHTS)
    assert result.exit_code == 0, result.output
    assert "Training can start." in result.output
    assert "asks for" not in result.output
    assert "problem" not in result.output


@pytest.mark.parametrize("name", EXPECTED)
def test_trains_and_judges(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    data = roots[name.split(".")[0]]
    extra = ["anchor_scales=1,2"] if "rfcn" in name else ["crop=32,40"]
    changes = [part for change in (*TINY, *extra) for part in ("--set", change)]
    result = run("train", name, "--data", data, "--run", tmp_path / "run", *changes)
    assert result.exit_code == 0, result.output
    split = ["--split", "val2014"] if name == "coco.rfcn" else []
    result = run("eval", tmp_path / "run", *split)
    assert result.exit_code == 0, result.output
    (report,) = (tmp_path / "run").glob("eval-*.json")
    content = json.loads(report.read_text())
    assert content["images"] == 2
    assert ("mIoU" if "deeplab" in name else "AP") in content["results"]


def test_what_is_missing_is_said(roots: dict[str, Path], tmp_path: Path, miniature: ModuleType) -> None:
    alone = miniature.make_devkit(tmp_path / "voc")
    result = run("check", "voc.deeplab", "--data", alone, *WEIGHTS)
    assert result.exit_code == 0
    assert "the recipe asks for 2012_train+sbd; 2012_train is taken" in result.output
    assert "benchmark_RELEASE/dataset/" in result.output
    assert "expected layout" not in result.output
    result = run("check", "cityscapes.deeplab", "--data", alone, "--set", "layout=cityscapes")
    assert result.exit_code == 2
    assert "leftImg8bit/SPLIT/CITY/" in result.output


def test_sbd_adds_what_voc_has_not(roots: dict[str, Path]) -> None:
    """Images 5 and 6: 2 is VOC's already, with its finer mask, and 3 and 4 are judged on."""
    data = VOCSegmentation(roots["voc"], "2012_train+sbd")
    assert data.ids == [f"2008_{index:06d}" for index in (0, 1, 2, 6, 5)]
    assert len(data.classes) == 21
    assert not len(data.problems)


def test_sbd_reads_as_torchvision_reads_it(roots: dict[str, Path]) -> None:
    data = VOCSegmentation(roots["voc"], "sbd")
    folder = roots["voc"] / "benchmark_RELEASE" / "dataset"
    known = {}
    for split in ("train", "val"):
        other = theirs.SBDataset(folder, split, mode="segmentation")
        known |= {Path(path).stem: other[index] for index, path in enumerate(other.images)}
    for index, name in enumerate(data.ids):
        image, mask = data[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(known[name][0]))
        assert np.array_equal(mask.numpy(), np.asarray(known[name][1]))


def test_damaged_sbd_is_reported(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_devkit(tmp_path)
    folder = miniature.make_sbd(root / "sbd")
    (folder / "cls" / "2008_000005.mat").write_bytes((folder / "cls" / "2008_000005.mat").read_bytes()[:150])
    (folder / "img" / "2008_000006.jpg").unlink()
    data = VOCSegmentation(root, "2012_train+sbd")
    assert len(data) == 3
    found = {problem.path.name: problem.kind for problem in data.problems}
    assert found == {"2008_000005.mat": "unreadable annotation", "2008_000006.jpg": "missing image"}
    (folder / "train.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt: SBD's list cannot be read"):
        VOCSegmentation(root, "sbd")


def test_converted_sbd_is_found_too(tmp_path: Path, miniature: ModuleType) -> None:
    voc = miniature.make_voc(tmp_path / "VOC2012", {"train": 2, "more": 1}, pattern="2008_{:06d}")
    (voc / "SegmentationClassAug").mkdir()
    mask = voc / "SegmentationClass" / "2008_000002.png"
    mask.rename(voc / "SegmentationClassAug" / mask.name)
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("2008_000000\n2008_000002\n")
    assert VOCSegmentation(voc, "trainaug").mask_paths[1].parent.name == "SegmentationClassAug"


def test_voc_reads_as_torchvision_reads_it(roots: dict[str, Path]) -> None:
    boxes, masks = VOCDetection(roots["voc"], "2007_trainval"), VOCSegmentation(roots["voc"], "2012_train")
    other = theirs.VOCDetection(roots["voc"], "2007", "trainval")
    assert len(boxes) == len(other) == 3
    for (image, target), (picture, annotation) in zip(boxes, other, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
        (item,) = annotation["annotation"]["object"]
        corners = [int(item["bndbox"][edge]) for edge in ("xmin", "ymin", "xmax", "ymax")]
        assert target["boxes"].tolist() == [[corners[0] - 1, corners[1] - 1, corners[2], corners[3]]]
        assert boxes.classes[target["labels"] - 1] == item["name"]
    pairs = zip(masks, theirs.VOCSegmentation(roots["voc"], "2012", "train"), strict=True)
    assert all(np.array_equal(ours[1].numpy(), np.asarray(mask)) for ours, (_, mask) in pairs)


def test_coco_reads_as_torchvision_reads_it(roots: dict[str, Path]) -> None:
    pytest.importorskip("pycocotools")
    ours = COCODetection.from_folder(roots["coco"], "val2014")
    other = theirs.CocoDetection(roots["coco"] / "val2014", roots["coco"] / "annotations" / "instances_val2014.json")
    for (image, target), (picture, items), key in zip(ours, other, other.ids, strict=True):
        assert target["image_id"] == key
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
        corners = [[x, y, x + width, y + height] for x, y, width, height in (item["bbox"] for item in items)]
        assert target["boxes"].tolist() == corners
        assert [ours.category_ids[label] for label in target["labels"].tolist()] == [i["category_id"] for i in items]


def test_coco_splits_are_joined_and_test_dev_has_no_boxes(roots: dict[str, Path], tmp_path: Path) -> None:
    joined = COCODetection.from_folder(roots["coco"], "train2014+val2014")
    assert joined.annotated
    assert joined.image_ids == [0, 1, 2, 3, 4]
    assert [path.parent.name for path in joined.paths] == ["train2014"] * 3 + ["val2014"] * 2
    unknown = COCODetection.from_folder(roots["coco"], "test-dev2015")
    assert not unknown.annotated
    assert unknown.image_ids == [102, 103]
    assert unknown[1][1]["boxes"].shape == (0, 4)
    again = COCODetection.from_folder(roots["coco"], "val2014+val2014")
    assert again.problems.counts() == {"duplicate id": 2}
    with pytest.raises(DataError, match=r"no split 'val2015'.*test-dev2015, train2014, val2014"):
        COCODetection.from_folder(roots["coco"], "train2014+val2015")


def test_cityscapes_has_its_training_ids(roots: dict[str, Path]) -> None:
    data = CityscapesSegmentation(roots["cityscapes"], "train")
    assert data.classes[0] == "road"
    assert data.classes[13] == "car"
    assert data.absent(2).startswith("sidewalk, building and 15 more: there is no pixel to learn from; ")
    assert data.absent().endswith(
        f"{3 * (64 * 48 - 30 * 28):,} of {3 * 64 * 48:,} pixels have label ids that are not trained on"
    )
    assert len(data.classes) == 19
    assert data.ids == ["aachen_000000_000019", "aachen_000002_000019", "bochum_000001_000019"]
    table = torch.full((256,), 255, dtype=torch.uint8)
    table[7], table[26] = 0, 13
    other = theirs.Cityscapes(roots["cityscapes"], "train", target_type="semantic")
    known = {Path(path).name: other[index] for index, path in enumerate(other.images)}
    for path, (image, mask) in zip(data.paths, data, strict=True):
        picture, ids = known[path.name]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture))
        assert torch.equal(mask.as_subclass(torch.Tensor), table[torch.from_numpy(np.array(ids)).long()])


def test_cityscapes_without_a_label_or_folder(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_cityscapes(tmp_path, {"train": 2})
    (mask,) = (root / "gtFine" / "train" / "aachen").iterdir()
    mask.unlink()
    data = CityscapesSegmentation(root, "train")
    assert len(data) == 1
    assert data.problems.counts() == {"missing annotation": 1}
    with pytest.raises(DataError, match="leftImg8bit/val"):
        CityscapesSegmentation(root, "val")
    with pytest.raises(DataError, match="no split 'dev'; Cityscapes has train, val, test"):
        CityscapesSegmentation(root, "dev")
    with pytest.raises(ValueError, match="has 19 classes, got 2: a, b"):
        CityscapesSegmentation(root, "train", classes=["a", "b"])


def test_a_deep_check_finds_damaged_pixels(tmp_path: Path, miniature: ModuleType) -> None:
    root = miniature.make_cityscapes(tmp_path, {"train": 2, "val": 2})
    damaged = sorted((root / "leftImg8bit" / "train").glob("*/*.png"))
    for number, image in enumerate(damaged, start=1):
        content = bytearray(image.read_bytes())
        content[1000:2000] = bytes(1000)
        image.write_bytes(content)
        assert run("check", "cityscapes.deeplab", "--data", root, *WEIGHTS).exit_code == 0
        result = run("check", "cityscapes.deeplab", "--data", root, "--deep", *WEIGHTS)
        assert f"unreadable image: {number}" in result.output
        assert image.name in result.output
        assert result.exit_code == (2 if number == len(damaged) else 0)


def test_endings_in_any_case(tmp_path: Path, miniature: ModuleType) -> None:
    city = miniature.make_cityscapes(tmp_path / "city", {"train": 2, "val": 2})
    voc = miniature.make_devkit(tmp_path / "voc")
    sbd = miniature.make_sbd(voc / "sbd")
    for path in [*city.rglob("*.png"), *sbd.rglob("*.jpg"), *sbd.rglob("*.mat")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    assert CityscapesSegmentation(city, strict=True).ids == ["aachen_000000_000019", "bochum_000001_000019"]
    assert len(VOCSegmentation(voc, "sbd", strict=True)) == 3
    (sbd / "train.txt").write_bytes((sbd / "train.txt").read_text().encode("utf-16"))
    assert len(VOCSegmentation(voc, "sbd", strict=True)) == 3
