"""The picture of the layers is drawn from the contracts as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_the_picture_shows_the_contracts() -> None:
    path = Path(__file__).parents[2] / "docs" / "layers.py"
    spec = importlib.util.spec_from_file_location("layers", path)
    assert spec is not None
    assert spec.loader is not None
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    assert layers.layers()[0] == ["cli"]
    assert layers.IMAGE.read_text(encoding="utf-8") == layers.draw(layers.layers()), "run python docs/layers.py"
