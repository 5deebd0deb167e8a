"""Prints docs/dependencies.md: every package that Pliant needs or can use, with its licence, from what is installed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Where the package's metadata does not say it in a few words: from its licence file.
READ = {
    "faster-coco-eval": "Apache-2.0",
    "matplotlib": "PSF-based",
    "pre-commit": "MIT",
    "torch": "BSD-3-Clause",
    "torchvision": "BSD-3-Clause",
    "twine": "Apache-2.0",
}


def licence(name: str) -> str:
    if name in READ:
        return READ[name]
    about = metadata.metadata(name)
    classified = [text.split(" :: ")[-1] for text in about.get_all("Classifier") or () if text.startswith("License ::")]
    stated = about.get("License-Expression") or (about.get("License") or "").strip().split("\n")[0]
    return stated if stated and len(stated) < 60 else ", ".join(classified) or "see its files"


def project() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def rows(requirements: Sequence[str]) -> list[str]:
    """A line of the table for each package, without those that are this one's own extras."""
    found = {re.sub(r"\[.*\]", "", text): None for text in requirements if ">=" in text}
    parts = sorted(text.split(">=") for text in found)
    return [f"| {name} | {version} | {licence(name)} |" for name, version in parts]


def table() -> str:
    head = ["| package | from | licence |", "| --- | --- | --- |"]
    optional = [text for extra in project()["optional-dependencies"].values() for text in extra]
    return "\n".join(
        [
            "# Dependencies",
            "",
            "What Pliant needs to run, the oldest version and the licence of each, as `tools/licences.py` prints it.",
            "",
            *head,
            *rows(project()["dependencies"]),
            "",
            "What only its extras need: export, benchmarks, documentation, tests, development and releases.",
            "",
            *head,
            *rows(optional),
            "",
            "To build: scikit-build-core (Apache-2.0), nanobind (BSD-3-Clause) and setuptools-scm (MIT). The compiled",
            "module contains nanobind, and links to the system's OpenMP library.",
            "",
            "`Glyphs` draws on scikit-learn's copy of the Optical Recognition of Handwritten Digits data of the UCI",
            "repository (CC BY 4.0: E. Alpaydin and C. Kaynak, 1998).",
        ]
    )


if __name__ == "__main__":
    print(table())
