"""A data folder whose names are markup, paths or no text: checking it says so, and training writes to its run alone."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor, nn

from pliant.commands.check import check
from pliant.commands.train import report_problems
from pliant.data import DataError, VOCDetection, VOCSegmentation, transforms
from pliant.data.glyphs_folder import write_glyphs
from pliant.engine import Schedule, SegmentationModule
from pliant.engine.fitting import FitSettings, fit
from pliant.engine.segmentation import collate_evaluation, collate_training
from pliant.runs.folder import RunFolder
from pliant.tasks.splits import TrainingData

NAMES = ("[/red]", "[bold", "../../cat", "a\x9b2J", "\u202eb")


def folder(root: Path) -> Path:
    """A folder of VOC layout whose classes and images have these names, and an image that is none."""
    for place in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / place).mkdir(parents=True)
    ids = [f"[/{number}]" if number else "[" for number in range(3)]
    folders = [name.rpartition("/")[0] for name in ids]
    for name, inner in zip(ids, folders, strict=True):
        for place in ("Annotations", "JPEGImages"):
            (root / place / inner).mkdir(exist_ok=True)
        annotation = ElementTree.Element("annotation")
        for label in NAMES:
            item = ElementTree.SubElement(annotation, "object")
            ElementTree.SubElement(item, "name").text = label
            box = ElementTree.SubElement(item, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), ("2", "3", "9", "9"), strict=True):
                ElementTree.SubElement(box, key).text = value
        ElementTree.ElementTree(annotation).write(root / "Annotations" / f"{name}.xml", encoding="utf-8")
        Image.new("RGB", (20, 16)).save(root / "JPEGImages" / f"{name}.png")
    (root / "JPEGImages" / f"{ids[-1]}.png").write_bytes(b"none")
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(ids), encoding="utf-8")
    return root


def test_names_that_are_markup_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("voc.faster_rcnn", folder(tmp_path / "set"), assignments=["weights=random"], deep=True)
    shown = capsys.readouterr().out
    for name in ("[/red]", "[bold", "../../cat", "a\\x9b2J", "\\u202eb", "[/2].png"):
        assert name in shown
    assert "\x9b" not in shown


def test_problems_of_strange_names_are_written_to_the_run(tmp_path: Path) -> None:
    data = VOCDetection(folder(tmp_path / "set"))
    data.problems.report("a\ud800\nb", "unknown class", "\x1b[2J")
    before = set(tmp_path.rglob("*"))
    run = RunFolder.create(tmp_path / "run", {"classes": data.classes})
    report_problems(run, {"train": data})
    lines = (run.path / "problems.txt").read_text().splitlines()
    assert len(lines) == 2
    assert lines[1] == "train: a\\ud800\\nb: unknown class: \\x1b[2J (skipped)"
    assert {path for path in tmp_path.rglob("*") if run.path not in (path, *path.parents)} == before


class Network(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images)}


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_is_lost_while_training_stops_it_with_one_error(tmp_path: Path, workers: int) -> None:
    root = write_glyphs(tmp_path / "set", {"train": 12}, size=48, sides=(14, 30))
    data = VOCSegmentation(root, transforms=transforms.segmentation_train(32, 48, crop=24))
    module = SegmentationModule(Network(len(data.classes)), Schedule(max_steps=50, lr=0.1), data.classes)
    run = RunFolder.create(tmp_path / "run", {"recipe": "tiny"})
    settings = FitSettings(batch_size=2, checkpoint_every=1, workers=workers, accelerator="cpu")
    done = []

    def lose(step: int) -> None:
        done.append(step)
        if step == 3:
            shutil.rmtree(root)

    with pytest.raises(DataError, match=r"set/\w+: existed when the data set was opened, and is now missing or empty$"):
        fit(
            module,
            TrainingData(data, None, collate_training, collate_evaluation),
            run,
            settings,
            {"recipe": "tiny"},
            watch=lose,
        )
    assert 3 <= len(done) < 20
    assert run.last.is_file()
