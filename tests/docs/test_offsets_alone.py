"""The page of the offsets alone has the numbers of its file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_numbers_of_its_file() -> None:
    spec = importlib.util.spec_from_file_location("offsets_alone", DOCS / "offsets_alone.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = json.loads(script.NUMBERS.read_text(encoding="utf-8"))["runs"]
    page = (DOCS / "offsets-alone.md").read_text(encoding="utf-8")
    assert script.table(found) in page
    assert f"mIoU of {script.shown([run['small'] for run in found])}" in page
