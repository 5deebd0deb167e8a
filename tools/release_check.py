"""The checklist of a release: tools/release_check.py VERSION [PYTHON ...], where the tag vVERSION is checked out.

Builds the sdist, and from it a wheel for each Python (programs such as python3.11; the one that runs this if none is
named). Both are tested in clean environments, on the oldest and the newest of these with the oldest and the newest
torch; supported Pythons that were not among them are said. An environment takes up to 6 GB, one at a time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
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


def supported_pythons() -> list[str]:
    """The versions that `pyproject.toml` names, such as 3.11, oldest first."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    return re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(classifiers), re.MULTILINE)


def by_version(pythons: Sequence[str]) -> dict[str, str]:
    """The path of each interpreter under its version, oldest first."""
    show = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    found = dict(run(python, "-c", show).strip().split(" ", 1) for python in pythons)
    supported = supported_pythons()
    if strange := set(found) - set(supported):
        raise SystemExit(f"Python {', '.join(strange)} is not among the supported {', '.join(supported)}")
    return {version: found[version] for version in supported if version in found}


def build(folder: Path, pythons: dict[str, str]) -> tuple[Path, list[Path]]:
    """The sdist, and a wheel made from it for each interpreter."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    for python in pythons.values():
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist)
    run(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir())
    return sdist, [next(folder.glob(f"*-cp{version.replace('.', '')}-*.whl")) for version in pythons]


def test_installed(package: Path, python: str, torch: tuple[str, ...], version: str) -> str:
    """Install into a new environment, and run tests from a copy without sources. What was installed, in words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder / "venv")
        clean = folder / "venv" / "bin" / "python"
        run(clean, "-m", "pip", "install", "--quiet", *torch, f"{package}[test]")
        show = "import platform, torch, pliant; print(pliant.__version__, platform.python_version(), torch.__version__)"
        found, *others = run(clean, "-c", show, cwd=folder).split()
        if found != version:
            raise RuntimeError(f"{package.name} says that it is {found}")
        tree = folder / "tree"
        run("git", "worktree", "add", "--detach", tree, "HEAD")
        try:
            (tree / "src").rename(folder / "sources")
            passed = run(clean, "-m", "pytest", "-n", "auto", *QUICK_TESTS, cwd=tree).strip().splitlines()[-1]
        finally:
            run("git", "worktree", "remove", "--force", tree)
        return "Python {}, torch {}".format(*others) + f": {passed}"


def main(version: str, *named: str) -> None:
    pythons = by_version(named or [sys.executable])
    problems = list(what_is_not_ready(version))
    if problems:
        raise SystemExit("Not ready:\n" + "\n".join(f"- {problem}" for problem in problems))
    ordered = list(pythons.values())
    with tempfile.TemporaryDirectory() as name:
        sdist, wheels = build(Path(name), pythons)
        for package, python, torch in (
            (wheels[0], ordered[0], OLDEST),
            (wheels[-1], ordered[-1], NEWEST),
            (sdist, ordered[0], NEWEST),
        ):
            print(f"{package.name} ...", flush=True)
            print(f"  {test_installed(package, python, torch, version)}", flush=True)
    if untried := [python for python in supported_pythons() if python not in pythons]:
        print(f"Not tried: Python {', '.join(untried)}. Name such interpreters, too.")
    print(f"{version} can be released: push the tag, and upload what cibuildwheel makes of it.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
