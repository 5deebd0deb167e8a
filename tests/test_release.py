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


def test_pythons_are_the_same_everywhere() -> None:
    """What is promised, what wheels are built for, and where checks start."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = re.findall(r"Python :: 3\.(\d+)$", "\n".join(content["project"]["classifiers"]), re.MULTILINE)
    oldest, newest = named[0], named[-1]
    assert named == [str(minor) for minor in range(int(oldest), int(newest) + 1)]
    assert content["project"]["requires-python"] == f">=3.{oldest}"
    assert content["tool"]["cibuildwheel"]["build"].startswith(f"cp31[{oldest[1]}-{newest[1]}]-")
