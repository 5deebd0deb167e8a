"""The ledger is a file with one measurement in each line, in JSON. Every line names the machine and the code."""

from __future__ import annotations

import ast
import datetime
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pliant
from pliant.bench.machine import commit

Line = dict[str, Any]
DEFAULT = Path("docs/gpu/ledger.jsonl")
_PACKAGES = ("torch", "torchvision", "triton", "deformops")


def read(path: Path) -> list[Line]:
    """Read all lines of a ledger; there are none if the file does not exist.

    Raises:
        ValueError: If a line is not a JSON object with a step. A last line that was cut off is left out.
    """
    if not path.exists():
        return []
    written = path.read_text(encoding="utf-8").split("\n")
    lines = []
    for number, text in enumerate(written, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(written):  # no newline follows: the writer was stopped
                continue
            raise ValueError(f"{path}, line {number}, is no JSON: {error}") from error
        if not isinstance(line, dict) or "step" not in line:
            raise ValueError(f"{path}, line {number}, must be an object with a field 'step', got {text[:80]}")
        lines.append(line)
    return lines


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line and flush it to the disk. A last line that was cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.truncate(_end_of_whole_lines(path))
        file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _end_of_whole_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def finished(lines: Iterable[Line], gpu: str, kernels: str) -> set[str]:
    """Return the steps that finished on this GPU with these kernels, with or without an error."""
    return {
        line["step"] for line in lines if line.get("last") and (line.get("gpu"), line.get("kernels")) == (gpu, kernels)
    }


def failed(lines: Iterable[Line], before: str) -> set[str]:
    """Return the steps whose last run finished with an error before a date."""
    state = {line["step"]: "error" in line and line["date"] < before for line in lines if line.get("last")}
    return {step for step, wrong in state.items() if wrong}


def finite(value: Any) -> Any:
    """Replace numbers that JSON cannot represent by None."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kernels_digest() -> str:
    """Return ten characters that change with the code of the operators, but not with comments and docstrings."""
    digest = hashlib.sha256()
    folder = Path(pliant.__file__).parent / "ops"
    for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        text = file.read_text(encoding="utf-8")
        code = _without_docstrings(text) if file.suffix == ".py" else text
        digest.update(f"{file.relative_to(folder).as_posix()}\0{code}\0".encode())
    return digest.hexdigest()[:10]


def _without_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def about(device: str) -> Line:
    """Return the fields that every line has: the GPU, its driver, the versions, and the code that ran."""
    torch = importlib.import_module("torch")
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["torch"] = str(torch.__version__)  # with the build for CUDA
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none: rehearsed on a CPU",
        "capability": list(torch.cuda.get_device_capability()) if device == "cuda" else None,
        "driver": _driver() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "versions": versions,
        "commit": commit(),
        "kernels": kernels_digest(),
    }


def now() -> str:
    """Return the date and time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
