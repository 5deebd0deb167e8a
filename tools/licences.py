"""Prints docs/dependencies.md: every package that Pliant needs to run, with its licence, from what is installed."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

# Where the package's metadata does not say it in a few words: from its licence file.
READ = {
    "faster-coco-eval": "Apache-2.0",
    "matplotlib": "PSF-based",
    "torch": "BSD-3-Clause",
    "torchvision": "BSD-3-Clause",
}


def licence(name: str) -> str:
    if name in READ:
        return READ[name]
    about = metadata.metadata(name)
    classified = [text.split(" :: ")[-1] for text in about.get_all("Classifier") or () if text.startswith("License ::")]
    stated = about.get("License-Expression") or (about.get("License") or "").strip().split("\n")[0]
    return stated if stated and len(stated) < 60 else ", ".join(classified) or "see its files"


def needed() -> dict[str, str]:
    """The runtime dependencies of `pyproject.toml`: names, and the oldest versions."""
    stated = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(requirement.split(">=") for requirement in stated)


def table() -> str:
    rows = [f"| {name} | {version} | {licence(name)} |" for name, version in sorted(needed().items())]
    return "\n".join(
        [
            "# Dependencies",
            "",
            "What Pliant needs to run, the oldest version and the licence of each, as `tools/licences.py` prints it.",
            "",
            "| package | from | licence |",
            "| --- | --- | --- |",
            *rows,
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
