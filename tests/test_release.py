"""The pages that a release goes by agree with the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_dependency_is_listed_with_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, optional = (ROOT / "docs/dependencies.md").read_text().split("What only its extras need")
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for page, stated in ((needed, project["dependencies"]), (optional, extras)):
        rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| (.+) \|$", page, re.MULTILINE)
        packages = {re.sub(r"\[.*\]", "", text) for text in stated if not text.startswith("pliant[")}
        assert {f"{name}>={version}" for name, version, _ in rows} == packages, "run tools/licences.py"
        assert all(licence != "see its files" for *_, licence in rows)


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_templates_ask_something(name: str) -> None:
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text()
    assert text.startswith("name: ")
    assert "type: textarea" in text


def test_pull_requests_are_asked_for_tests_and_changes() -> None:
    text = (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
    assert all(word in text for word in ("pytest", "CHANGELOG.md", "PLIANT_WRITE_API=1"))


def test_pythons_are_the_same_everywhere() -> None:
    """What is promised, what wheels are built for, and where checks start."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = re.findall(r"Python :: 3\.(\d+)$", "\n".join(content["project"]["classifiers"]), re.MULTILINE)
    oldest, newest = named[0], named[-1]
    assert named == [str(minor) for minor in range(int(oldest), int(newest) + 1)]
    assert content["project"]["requires-python"] == f">=3.{oldest}"
    assert content["tool"]["cibuildwheel"]["build"].startswith(f"cp31[{oldest[1]}-{newest[1]}]-")
