"""The pages that a release goes by agree with the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_dependency_is_listed_with_its_licence() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d.]+) \| (.+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
    )
    assert {f"{name}>={version}" for name, version, _ in rows} == set(stated)
    assert all(licence != "see its files" for *_, licence in rows)


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_templates_ask_something(name: str) -> None:
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text()
    assert text.startswith("name: ")
    assert "type: textarea" in text
