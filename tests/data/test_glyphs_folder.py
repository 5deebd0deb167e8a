"""Glyphs in files are the scenes that they are in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pliant.data import DataError, Glyphs, VOCDetection, VOCSegmentation
from pliant.data.glyphs_folder import write_glyphs


def test_files_hold_the_scenes(tmp_path: Path) -> None:
    scenes = {"size": 64, "sides": (12, 60), "seed": 3}
    folder = write_glyphs(tmp_path / "glyphs", {"train": 4, "test": 3}, **scenes)
    for split, length in (("train", 4), ("test", 3)):
        boxes, masks = VOCDetection(folder, split), VOCSegmentation(folder, split)
        assert len(boxes.problems) == len(masks.problems) == 0
        assert masks.classes == Glyphs(1).classes
        drawn = Glyphs(length, split=split, task="detection", **scenes)
        for index in range(length):
            image, target = drawn[index]
            label = {name: str(digit) for digit, name in enumerate(drawn.classes)}
            assert torch.equal(boxes[index][0], image)
            assert torch.equal(boxes[index][1]["boxes"], target["boxes"])
            names = [boxes.classes[value - 1] for value in boxes[index][1]["labels"]]
            assert names == [label[drawn.classes[value - 1]] for value in target["labels"]]
            assert torch.equal(masks[index][1], torch.from_numpy(drawn.scene(index).mask))


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_glyphs(tmp_path, {"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
