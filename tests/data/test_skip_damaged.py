"""Images that break after the scan are not judged twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pliant.data import ImageFolder


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_left_out_and_named(tmp_path: Path, workers: int) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((8, 9, 3), 50 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    data = ImageFolder(tmp_path, "val")
    broken = tmp_path / "val" / "a" / "1.png"
    broken.write_bytes(b"gone")
    assert data[1][1] == 1  # in training the next image takes its place
    data.skip_damaged()
    assert data.skipped == []
    loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=list)
    samples = [sample for batch in loader for sample in batch]
    assert [sample is None for sample in samples] == [False, True, False, False]
    assert [sample[1] for sample in samples if sample is not None] == [0, 1, 1]
    assert data.skipped == [broken]
