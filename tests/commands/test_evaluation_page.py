"""The page of `pliant eval`, with untrained networks on miniature data."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pliant import distributed
from pliant.cli import app
from pliant.engine.extremes import RankedImage
from pliant.engine.metrics import SegmentationMetrics
from pliant.recipes import imagenet, voc
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.evaluation import _with_indices, evaluate_trained, open_for_evaluation
from pliant.runs.exported import open_trained
from pliant.runs.weights import write_weights
from pliant.tasks.task import build_model

MASKS = ("background", "red", "green")


def weights(path: Path, recipe: Recipe, classes: tuple[str, ...], **changes: Any) -> Path:
    """Untrained weights of a recipe."""
    recipe = dataclasses.replace(recipe, backbone="timm/resnet10t", short_side=48, max_side=64, **changes)
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


def run(code: int, *arguments: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def require_self_contained(page: str) -> None:
    loaded = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert all(source.startswith(("data:", "#")) for source in loaded)
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def break_pixels(path: Path) -> None:
    """Put a PNG in place of an image whose header and end are right and whose pixels are not."""
    broken = path.with_suffix(".png")
    with Image.open(path) as image:
        image.save(broken)
    path.unlink()
    content = bytearray(broken.read_bytes())
    content[200:1200] = bytes(1000)
    broken.write_bytes(content)


def test_the_page_of_a_detector(miniature: ModuleType, tmp_path: Path) -> None:
    names = ("<b>red</b>", "grün & $x$")
    data = miniature.make_voc(tmp_path / "voc", {"test": 4}, classes=names)
    for file in (data / "Annotations").iterdir():
        text = file.read_text()
        for name in names:
            escaped = name.replace("&", "&amp;").replace("<", "&lt;")
            text = text.replace(f"<name>{name}</name>", f"<name>{escaped}</name>")
        file.write_text(text)
    small = {"anchor_scales": (1, 2), "score_threshold": 0.0, "max_detections": 20}
    mine = weights(tmp_path / "mine.safetensors", voc.class_aware_rpn(), names, **small)
    output = run(0, "eval", mine, "--data", data, "--split", "test")
    assert "eval-test.html" in output
    report = json.loads((tmp_path / "eval-test.json").read_text())
    columns = ("AP", "AP50", "AP75", "VOC_AP50", "VOC_AP50_11pt", "VOC_AP70", "VOC_AP70_11pt")
    assert set(report["results"]) == {*columns, "per_class"}  # the page adds nothing to the file
    page = (tmp_path / "eval-test.html").read_text(encoding="utf-8")
    require_self_contained(page)
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[:3] == ["Results of each class", "Precision over recall", "Confusion matrix"]
    assert headings[-2:] == ["Worst images", "Best images"]
    assert all(f">{column.replace('_', ' ')}<" in page for column in (*columns, "precision", "recall", "F1", "objects"))
    assert "<b>" not in page
    assert page.count("&lt;b&gt;red&lt;/b&gt;") >= 3  # in the table and the charts
    assert "$x$" in page
    assert set(re.findall("<h3>(.*?)</h3>", page)) == {f"scene_{index}.jpg" for index in range(4)}
    assert page.count("data:image/webp") == 2 * 4
    assert "By the F1 of each image" in page


def test_the_images_of_a_segmenter_are_those_that_its_scores_belong_to(miniature: ModuleType, tmp_path: Path) -> None:
    data = miniature.make_voc(tmp_path / "voc", {"test": 5})
    break_pixels(data / "JPEGImages" / "scene_1.jpg")
    mine = open_trained(weights(tmp_path / "mine.safetensors", voc.deeplab(), MASKS))
    dataset = open_for_evaluation(mine, data, "test", quiet=True)
    evaluation = evaluate_trained(mine, dataset, "test", show=False)
    assert sorted(index for index, _ in evaluation.tested) == [0, 2, 3, 4]
    for index, image in evaluation.tested:
        metrics = SegmentationMetrics(MASKS)
        metrics.update(image.result, dataset.original(index)[1])
        assert metrics.compute()["mIoU"] == pytest.approx(image.score)
    assert len({image.score for _, image in evaluation.tested}) == 4  # so that another order would show
    run(0, "eval", mine.path, "--data", data, "--split", "test")
    page = (tmp_path / "eval-test.html").read_text(encoding="utf-8")
    require_self_contained(page)
    assert "scene_1.png" in re.findall("<dt>left out</dt><dd>(.*?)</dd>", page)[0]
    ranked = [f"scene_{index}.jpg" for index, _ in evaluation.tested]
    assert re.findall("<h3>(.*?)</h3>", page) == [*ranked[:2], *ranked[:1:-1]]
    assert all(f">{column}<" in page for column in ("IoU", "IoU scaled", "precision", "accuracy", "pixels"))


def test_the_page_of_a_classifier(miniature: ModuleType, tmp_path: Path) -> None:
    data = miniature.make_folders(tmp_path / "folders", {"val": 4})
    classes = tuple(sorted(folder.name for folder in (data / "val").iterdir()))
    mine = weights(tmp_path / "mine.safetensors", imagenet.resnet101(), classes, crop=32, batch_size=3)
    run(0, "eval", mine, "--data", data, "--split", "val")
    page = (tmp_path / "eval-val.html").read_text(encoding="utf-8")
    require_self_contained(page)
    assert len(re.findall("<p>probability of the right class [0-9.]+ %", page)) == 4
    assert page.count("prediction; truth: ") >= 4
    assert "Confusion matrix" in page


def test_indices_with_several_processes_and_damaged_images(
    miniature: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = miniature.make_voc(tmp_path / "voc", {"test": 7})
    mine = open_trained(weights(tmp_path / "mine.safetensors", voc.deeplab(), MASKS))
    dataset = open_for_evaluation(mine, data, "test", quiet=True)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    # The first process has the images 0, 2, 4 and 6, of which 2 is damaged; the second has 1, 3 and 5.
    tested = [RankedImage(rank, place, 0.5, None) for rank, place in ((0, 1), (1, 2), (0, 2))]
    found = _with_indices(tested, dataset, {dataset.paths[2]})
    assert [index for index, _ in found] == [4, 5, 6]


def test_files_of_others_are_not_replaced(miniature: ModuleType, tmp_path: Path) -> None:
    data = miniature.make_voc(tmp_path / "voc", {"test": 1})
    mine = weights(tmp_path / "mine.safetensors", voc.deeplab(), MASKS)
    (tmp_path / "eval-test.html").write_text("my notes")
    assert "eval-test.html" in run(2, "eval", mine, "--data", data, "--split", "test")
    assert (tmp_path / "eval-test.html").read_text() == "my notes"
    assert not (tmp_path / "eval-test.json").exists()
    said = run(2, "eval", mine, "--data", data, "--split", "test", "--out", tmp_path / "x.html")
    assert "x.json" in said
