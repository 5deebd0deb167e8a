"""The machine and the software that numbers were found with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # the last is Arm's
PACKAGES = ("pliant", "torch", "torchvision", "onnx", "onnxruntime", "openvino", "numpy")


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; False where the system does not tell."""
    return bool(_BFLOAT16 & set((_cpuinfo("flags") or _cpuinfo("Features")).split()))


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Python's version, and those of Pliant and its peers that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo(field: str) -> str:
    if not _CPUINFO.is_file():
        return ""
    for line in _CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
