"""Steps that run other programs: the operators' tests on the GPU, and NVIDIA's sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pliant.bench.gpu.steps import Absent, Place, Results, Step

TESTS = Path("tests/ops/test_triton.py")
TOOLS = ("memcheck", "racecheck")
_WORKERS = 14
_SECONDS = {"tests": 150, "memcheck": 90, "racecheck": 90}
_TAKES = 60  # seconds of any of them, about
_LAST = 1500  # characters of what a program said last
_TOOLKIT = Path("/usr/local/cuda/bin")


def tests() -> Iterator[Step]:
    """Yield the step that runs the tests of the Triton kernels."""
    yield Step("right", f"right: {TESTS}", _TAKES, _pytest)


def sanitizers() -> Iterator[Step]:
    """Yield the steps that run small calls of all operators under compute-sanitizer."""
    for tool in TOOLS:
        yield Step("right", f"right: compute-sanitizer {tool}", _TAKES, partial(_sanitizer, tool))


def _pytest(place: Place) -> Results:
    if not TESTS.exists():
        raise Absent(f"there is no {TESTS} here: run from the folder of the repository")
    chosen = ["-k", "pointwise or explain"] if place.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        workers = ["-n", str(min(_WORKERS, os.cpu_count() or 1))] if _has("xdist") and place.on_gpu else ["-n", "0"]
        plugins = ["-p", "no:benchmark"]  # pytest-benchmark warns of workers, and warnings are errors here
        command = [sys.executable, "-m", "pytest", str(TESTS), f"--junitxml={report}", *plugins, *workers, *chosen]
        ended = run(command, _SECONDS["tests"])
        yield {"key": {"tests": str(TESTS)}} | ended | (counted(report) if report.exists() else {"right": False})


def _has(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def counted(report: Path) -> dict[str, Any]:
    """Count the tests in a report of pytest, and return the names and messages of the failed ones."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = {}
    for case in cases:
        for wrong in (*case.findall("failure"), *case.findall("error")):
            failures[case.get("name", "")] = (wrong.get("message") or "").strip()[:300]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failures) - skipped
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
        "right": not failures and passed > 0,
    }


def _sanitizer(tool: str, place: Place) -> Results:
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(_TOOLKIT))
    if program is None:
        raise Absent(f"compute-sanitizer is neither on PATH nor in {_TOOLKIT}")
    if not place.on_gpu:
        raise Absent("compute-sanitizer looks at kernels on a GPU")
    command = [program, "--tool", tool, "--error-exitcode", "7", sys.executable, "-m", "pliant.bench.gpu.small"]
    # Without torch's cache of memory every tensor is an allocation, whose end the sanitizer sees.
    ended = run(command, _SECONDS[tool], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    yield {"key": {"tool": tool}} | ended | summed_up(ended)


def summed_up(ended: dict[str, Any]) -> dict[str, Any]:
    """Return how many errors the sanitizer found, from the last lines that it printed."""
    found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", ended["said"])
    if found is None:
        return {"right": False}
    return {"found": int(found[1]), "right": int(found[1]) == 0 and ended["status"] == 0}


def run(command: Sequence[str], seconds: float, more: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a program for a limited time. Return its status, which is None after a timeout, and the end of its output."""
    # A file, not a pipe: what a program left behind may hold a pipe open after its own end.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        program = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=os.environ | (more or {})
        )
        try:
            status: int | None = program.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
            status = None
        output.seek(0)
        said = output.read()
    return {"status": status, "said": said[-_LAST:]}
