"""What `pliant eval` reports and writes, with untrained networks on miniature data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pliant.cli import app
from pliant.engine.test_time_augmentation import Procedure
from pliant.recipes import coco, voc
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.weights import write_weights
from pliant.tasks.task import build_model

TINY: dict[str, Any] = {
    "backbone": "timm/resnet10t",
    "short_side": 48,
    "max_side": 64,
    "accelerator": "cpu",
    "anchor_scales": (1, 2),
    "score_threshold": 0.0,
    "max_detections": 20,
}


def weights(path: Path, recipe: Recipe, classes: tuple[str, ...], **changes: Any) -> Path:
    """Untrained weights of a recipe, with all that is said about them."""
    known = {field.name for field in dataclasses.fields(recipe)}
    tiny = {name: value for name, value in TINY.items() if name in known}
    recipe = dataclasses.replace(recipe, **(tiny | changes))
    description = {
        "recipe": "tiny",
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": classes,
        "splits": {"train": "train", "validation": None, "test": "test"},
        "step": 0,
    }
    write_weights(path, build_model(recipe, classes, pretrained=False), description)
    return path


def pliant_cli(*arguments: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def error_of(*arguments: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    return result.output


def break_pixels(path: Path) -> Path:
    """Put a PNG in place of an image whose header and end are right and whose pixels are not."""
    broken = path.with_suffix(".png")
    with Image.open(path) as image:
        image.save(broken)
    path.unlink()
    content = bytearray(broken.read_bytes())
    content[200:1200] = bytes(1000)
    broken.write_bytes(content)
    return broken


@pytest.fixture
def coco_data(miniature: ModuleType, tmp_path: Path) -> Path:
    """COCO's layout, whose ids of categories are not the labels."""
    root = miniature.make_coco(tmp_path / "coco", {"val": 6})
    miniature.make_test_dev(root)
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["id"] = {1: 17, 2: 5}[category["id"]]
        for annotation in content.get("annotations", []):
            annotation["category_id"] = {1: 17, 2: 5}[annotation["category_id"]]
        file.write_text(json.dumps(content))
    return root


def test_coco_results_are_what_pycocotools_judges(coco_data: Path, tmp_path: Path) -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    mine = weights(tmp_path / "mine.safetensors", coco.rfcn(), ("green", "red"))
    out = tmp_path / "out"
    out.mkdir()
    pliant_cli("eval", mine, "--data", coco_data, "--split", "val", "--out", out / "report.json")
    report = json.loads((out / "report.json").read_text())
    assert report["images"] == 6
    assert report["procedure"] == dataclasses.asdict(Procedure()) | {"scales": []}
    results = out / "detections_val_pliant_results.json"
    items = json.loads(results.read_text())
    assert {item["category_id"] for item in items} == {5, 17}
    assert {item["image_id"] for item in items} == set(range(6))
    assert set(items[0]) == {"image_id", "category_id", "bbox", "score"}
    truth = pycocotools.COCO(str(coco_data / "annotations" / "instances_val.json"))
    judged = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[1] > 0
    assert [report["results"][name] for name in ("AP", "AP50", "AP75")] == pytest.approx(judged.stats[:3].tolist())


def test_without_annotations_there_are_results_and_no_numbers(coco_data: Path, tmp_path: Path) -> None:
    mine = weights(tmp_path / "mine.safetensors", coco.class_aware_rpn(), ("green", "red"))
    output = pliant_cli("eval", mine, "--data", coco_data, "--split", "test-dev2015")
    report = json.loads((tmp_path / "eval-test-dev2015.json").read_text())
    assert "results" not in report
    assert report["images"] == 2
    assert "no annotations" in output
    items = json.loads((tmp_path / "detections_test-dev2015_pliant_results.json").read_text())
    assert {item["image_id"] for item in items} == {102, 103}


def test_options_reach_the_detector(coco_data: Path, tmp_path: Path) -> None:
    mine = weights(tmp_path / "mine.safetensors", coco.rfcn(), ("green", "red"))
    found = {}
    for name, options in {"plain": [], "all": ["--scales", "32,64", "--flip", "--box-averaging"]}.items():
        out = tmp_path / name / "report.json"
        out.parent.mkdir()
        pliant_cli("eval", mine, "--data", coco_data, "--split", "val", "--out", out, *options)
        found[name] = json.loads((out.parent / "detections_val_pliant_results.json").read_text())
    report = json.loads((tmp_path / "all" / "report.json").read_text())
    done = Procedure((32, 64), flip=True, box_averaging=True)
    assert report["procedure"] == dataclasses.asdict(done) | {"scales": [32, 64]}
    assert found["plain"] != found["all"]
    image = coco_data / "val" / "3.png"
    pliant_cli("predict", mine, image, "--out", tmp_path / "pictures", "--scales", "32,64", "--flip", "--box-averaging")
    predicted = json.loads((tmp_path / "pictures" / "predictions.json").read_text())
    evaluated = [item for item in found["all"] if item["image_id"] == 3]
    assert [item["score"] for item in predicted] == pytest.approx([item["score"] for item in evaluated])
    # Predictions name categories by label, results by COCO's ids.
    assert [{1: 5, 2: 17}[item["category_id"]] for item in predicted] == [item["category_id"] for item in evaluated]


def test_multi_scale_is_in_proportion_to_the_network(coco_data: Path, tmp_path: Path) -> None:
    mine = weights(tmp_path / "mine.safetensors", coco.class_aware_rpn(), ("green", "red"))
    pliant_cli("eval", mine, "--data", coco_data, "--split", "val", "--multi-scale")
    report = json.loads((tmp_path / "eval-val.json").read_text())
    assert report["procedure"]["scales"] == [38, 46, 55, 69, 96, 112]  # the network's short side is 48


def test_voc_results_count_pixels_from_one(miniature: ModuleType, tmp_path: Path) -> None:
    data = miniature.make_voc(tmp_path / "voc", {"test": 2})
    mine = weights(tmp_path / "mine.safetensors", voc.class_aware_rpn(), ("green", "red"), max_detections=300)
    pliant_cli("eval", mine, "--data", data, "--split", "test", "--voc-results", "--soft-nms")
    rows = [
        line.split()
        for name in ("green", "red")
        for line in (tmp_path / f"comp4_det_test_{name}.txt").read_text().splitlines()
    ]
    assert {row[0] for row in rows} == {"scene_0", "scene_1"}
    assert all(len(row[1].split(".")[1]) == 3 and len(row[2].split(".")[1]) == 1 for row in rows)
    # The images are 64 x 48; a box that fills one is 1..64 and 1..48.
    corners = [list(map(float, row[2:])) for row in rows]
    assert min(corner[0] for corner in corners) == min(corner[1] for corner in corners) == 1.0
    assert max(corner[2] for corner in corners) == 64.0
    assert max(corner[3] for corner in corners) == 48.0


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_not_judged(miniature: ModuleType, tmp_path: Path, workers: int) -> None:
    data = miniature.make_voc(tmp_path / "voc", {"test": 3})
    broken = break_pixels(data / "JPEGImages" / "scene_1.jpg")
    mine = weights(tmp_path / "mine.safetensors", voc.deeplab(), ("background", "red", "green"), workers=workers)
    output = pliant_cli("eval", mine, "--data", data, "--split", "test", "--flip", "--scales", "32,48")
    report = json.loads((tmp_path / "eval-test.json").read_text())
    assert (report["images"], report["skipped"]) == (2, [str(broken)])
    assert "scene_1.png cannot be read and was left out" in output
    assert set(report["results"]) == {"mIoU", "mIoU_scaled", "pixel_accuracy", "per_class"}
    for name in ("scene_0", "scene_2"):
        break_pixels(data / "JPEGImages" / f"{name}.jpg")
    detector = weights(tmp_path / "detector.safetensors", voc.class_aware_rpn(), ("green", "red"), workers=workers)
    for source in (mine, detector):
        assert "no image can be read" in error_of("eval", source, "--data", data, "--split", "test")


def test_options_that_do_not_fit_are_errors(miniature: ModuleType, tmp_path: Path) -> None:
    data = miniature.make_voc(tmp_path / "voc", {"test": 1})
    segmenter = weights(tmp_path / "s.safetensors", voc.deeplab(), ("background", "red", "green"))
    detector = weights(tmp_path / "d.safetensors", voc.class_aware_rpn(), ("green", "red"))
    evaluation = ["--data", data, "--split", "test"]
    for source, options, message in (
        (segmenter, ["--soft-nms"], "for detection"),
        (segmenter, ["--voc-results"], "for detection on VOC's layout"),
        (detector, ["--box-averaging"], "second stage"),
        (detector, ["--scales", "480,many"], "'480,many'"),
        (detector, ["--scales", "480", "--multi-scale"], "leave out --scales"),
        (detector, ["--scales", "0"], "positive"),
    ):
        assert message in error_of("eval", source, *evaluation, *options)
    assert not list(tmp_path.glob("eval*"))
