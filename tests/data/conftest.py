"""Small data sets in a temporary folder, and the shared ones beside the checkout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"

EDGES = ("xmin", "ymin", "xmax", "ymax")
Item = tuple[str, Sequence[object]]  # name, (xmin, ymin, xmax, ymax)


class VOCFolder:
    """Writes a folder of VOC layout piece by piece."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Annotations", "JPEGImages", "SegmentationClass"):
            (root / name).mkdir(parents=True)
        for task in ("Main", "Segmentation"):
            (root / "ImageSets" / task).mkdir(parents=True)

    def split(self, name: str, ids: Iterable[str], task: str = "Main") -> None:
        (self.root / "ImageSets" / task / f"{name}.txt").write_text("\n".join(ids) + "\n")

    def image(self, name: str, size: tuple[int, int] = (40, 30), suffix: str = ".jpg") -> Path:
        path = self.root / "JPEGImages" / f"{name}{suffix}"
        noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path

    def annotation(
        self, name: str, items: Iterable[Item], size: tuple[int, int] | None = (40, 30), extra: str = ""
    ) -> Path:
        claimed = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
        objects = "".join(
            f"<object><name>{label}</name>{extra}<bndbox>"
            + "".join(f"<{key}>{value}</{key}>" for key, value in zip(EDGES, box, strict=True))
            + "</bndbox></object>"
            for label, box in items
        )
        path = self.root / "Annotations" / f"{name}.xml"
        path.write_text(f"<annotation><filename>{name}.jpg</filename>{claimed}{objects}</annotation>")
        return path

    def mask(self, name: str, ids: np.ndarray) -> Path:
        path = self.root / "SegmentationClass" / f"{name}.png"
        mask = Image.fromarray(ids.astype(np.uint8)).convert("P")
        mask.putdata(ids.ravel().tolist())
        mask.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
        mask.save(path)
        return path


@pytest.fixture
def voc_folder(tmp_path: Path) -> Callable[..., VOCFolder]:
    """Make an empty folder of VOC layout below the temporary folder."""
    return lambda name="set": VOCFolder(tmp_path / name)


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """The folder of a shared data set; skips the test where it is absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"the data set {name} is not beside the checkout")
        return SHARED / name

    return find
