"""The checklist of a release: tools/release_check.py VERSION, with the tag vVERSION on what is checked out.

Builds the sdist and a wheel, and tests both in clean environments with the oldest and the newest torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = ("torch==2.6.0", "torchvision==0.21.0")
NEWEST = ("torch", "torchvision")
QUICK_TESTS = ("tests/ops", "tests/test_nn.py", "tests/test_surgery.py", "tests/test_native.py", "tests/test_import.py")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def what_is_not_ready(version: str) -> Iterator[str]:
    """What in the checkout contradicts the release."""
    if run("git", "status", "--porcelain"):
        yield "the checkout has changes that are not committed"
    if f"v{version}" not in run("git", "tag", "--points-at", "HEAD").split():
        yield f"the tag v{version} is not on this commit"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", changes, re.MULTILINE)
    if heading is None:
        yield f"CHANGELOG.md has no heading '## [{version}] - {date.today()}'"
    unreleased = changes.partition("## [Unreleased]")[2].partition("\n## ")[0]
    if unreleased.strip():
        yield "CHANGELOG.md still has lines under Unreleased"
    if run(sys.executable, "tools/licences.py") != (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"):
        yield "docs/dependencies.md is not what tools/licences.py prints"


def build(folder: Path) -> tuple[Path, Path]:
    run(sys.executable, "-m", "build", "--outdir", folder)
    run(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir())
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_installed(package: Path, torch: tuple[str, ...], folder: Path, version: str) -> None:
    """Install into a new environment, and run the operators' tests from a copy, so that no sources are near."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", *torch, f"{package}[test]")
    found = run(python, "-c", "import pliant; print(pliant.__version__)", cwd=folder).strip()
    if found != version:
        raise RuntimeError(f"{package.name} says that it is {found}")
    run("git", "worktree", "add", "--detach", folder / "tests", "HEAD")
    try:
        (folder / "tests" / "src").rename(folder / "sources")
        run(python, "-m", "pytest", "-n", "auto", *QUICK_TESTS, cwd=folder / "tests")
    finally:
        run("git", "worktree", "remove", "--force", folder / "tests")


def main(version: str) -> None:
    problems = list(what_is_not_ready(version))
    if problems:
        raise SystemExit("Not ready:\n" + "\n".join(f"- {problem}" for problem in problems))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder / "dist")
        for package, torch in ((wheel, OLDEST), (wheel, NEWEST), (sdist, NEWEST)):
            print(f"{package.name} with {torch[0]} ...", flush=True)
            test_installed(package, torch, folder / f"{package.suffix}-{torch[0]}", version)
    print(f"{version} can be released: push the tag, upload dist, move Unreleased in CHANGELOG.md.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
