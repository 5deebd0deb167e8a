"""Every block of code in the documentation: Python is run, and so are the commands, on miniature data.

Commands that need what a test has not (several processes, weights of other people, minutes) are held against the
command line's options and the recipes' fields instead.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from pliant.cli import app
from pliant.recipes import find_recipe, override

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/README.md")])
RUN = ("README.md", "getting-started.md", "your-data.md", "looking.md", "export.md")
COMMANDS = ("check", "train", "eval", "predict", "look", "export")
SMALL = "backbone=timm/resnet10t short_side=48 max_side=64 max_steps=1 batch_size=2 weights=random accelerator=cpu"
DETECTION = "anchor_scales=1,2"
DETECTOR, SEGMENTER = "runs/voc.faster_rcnn_deform", "runs/segmenter"


def blocks(page: Path, languages: tuple[str, ...]) -> list[str]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of Pliant on a page, as lists of words without ``pliant``."""
    for block in blocks(page, ("sh", "bash")):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                names = [Path(word).name for word in words]
                if "pliant" in names and "install" not in words:
                    yield words[names.index("pliant") + 1 :]


def with_blocks(*languages: str) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, languages)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, miniature: ModuleType) -> Path:
    """A folder with data and the run that pages speak of."""
    place = tmp_path_factory.mktemp("place")
    miniature.make_voc(place / "FOLDER", {"train": 4, "val": 2, "test": 2})
    shutil.copy(place / "FOLDER" / "JPEGImages" / "scene_0.jpg", place / "IMAGE")
    os.chdir(place)
    run(shlex.split("train voc.faster_rcnn_deform --data FOLDER"))
    run(shlex.split(f"train voc.deeplab_deform --data FOLDER --run {SEGMENTER} --set deform_layers=1"))
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> None:
    smaller = {"IMAGE...": "IMAGE", "OTHER": "FOLDER"}
    if words[0] == "export":  # a detector's takes half a minute, and is in tests/commands/test_export.py
        smaller[DETECTOR] = SEGMENTER
    words = [smaller.get(word, word) for word in words]
    if words[0] in ("check", "train") and "--resume" not in words and words[1] != "FOLDER":
        settings = SMALL if "deeplab" in words[1] else f"{SMALL} {DETECTION}"
        tuned = any(word.startswith("weights=runs/") for word in words)
        kept = [setting for setting in settings.split() if not (tuned and setting == "weights=random")]
        words += [part for setting in kept for part in ("--set", setting)]
        if words[0] == "train" and "--run" not in words and Path("runs", words[1]).exists():
            words += ["--run", f"runs/{len(os.listdir('runs'))}"]
    if "--resume" in words:
        words = ["max_steps=2" if word.startswith("max_steps=") else word for word in words]
    done = CliRunner().invoke(app, words, catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python(page: Path, place: Path) -> None:
    names: dict[str, Any] = {}  # a block goes on from the one before
    for block in blocks(page, ("python",)):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", with_blocks("sh", "bash"))
def test_commands_have_these_options(page: Path) -> None:
    group = typer.main.get_command(app)
    with group.make_context("pliant", [], resilient_parsing=True) as context:
        for words in commands(page):
            command = group.get_command(context, words[0])  # type: ignore[attr-defined]
            assert command is not None, words
            parsed = command.make_context(words[0], words[1:], parent=context)
            folder = words[0] == "check" and parsed.params.get("data") is None  # in place of a recipe
            if parsed.params.get("recipe") is not None and not folder:
                override(find_recipe(parsed.params["recipe"]), parsed.params.get("assignments") or ())


def test_commands_run(place: Path) -> None:
    done = set()
    for page in PAGES:
        for words in commands(page) if page.name in RUN else ():
            kind = (words[0], *words[1:2], *sorted(word for word in words if word.startswith("-")))
            if words[0] in COMMANDS and "--devices" not in words and kind not in done:
                run(words)
                done.add(kind)
    assert {command for command, *_ in done} == set(COMMANDS)
