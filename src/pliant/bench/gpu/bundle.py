"""Compiled kernels that travel: what was compiled without a GPU serves on one, and nothing is compiled there.

An entry of Triton's cache is found by a hash over Triton's own files and over the rest: the kernel's text, its line
numbers, types, hints and constants, the options, the assembler and the environment. A bundle keeps that rest, and
what Triton loads, the machine code and what is said of it. Installing computes the hashes anew, so that a bundle
serves wherever the version of Triton is the same, in any folder. It also builds, on all cores, the few C functions
with which Triton starts kernels.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.compiler import compiler
from triton.runtime import cache

from pliant.bench.gpu.compiling import Launch, compiled

_INDEX = "index.json"


class Entry(NamedTuple):
    """One compiled kernel: its name, what finds it but for Triton's own files, and what Triton loads."""

    name: str
    rest: str
    code: bytes
    about: str
    launcher: str | None


def entry(launch: Launch, capability: int) -> tuple[Entry, Any]:
    """Compile a launch, or find it in Triton's cache; the entry, and Triton's compiled kernel."""
    keys: list[str] = []

    def kept(*arguments: Any, **named: Any) -> str:
        keys.append(cache.get_cache_key(*arguments, **named))
        return keys[-1]

    launch.kernel.device_caches.clear()  # a kernel that is in memory already would come without its key
    with mock.patch.object(compiler, "get_cache_key", kept):
        kernel = compiled(launch, capability)
    own = cache.triton_key()
    if not keys or not keys[0].startswith(own):
        raise RuntimeError(f"triton {triton.__version__} makes the keys of its cache in a way that is not known here")
    about = Path(kernel.metadata_group[f"{kernel.name}.json"]).read_text()
    made = Entry(kernel.name, keys[0].removeprefix(own), kernel.asm["cubin"], about, _launcher(kernel))
    return made, kernel


def pack(path: Path, entries: Iterable[Entry]) -> None:
    """Write a bundle; equal entries are written once."""
    unique = {each.rest: each for each in entries}
    index = {
        "triton": triton.__version__,
        "entries": [{"name": each.name, "rest": each.rest} for each in unique.values()],
        "launchers": sorted({each.launcher for each in unique.values() if each.launcher}),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(_INDEX, json.dumps(index))
        for number, each in enumerate(unique.values()):
            file.writestr(f"{number}.cubin", each.code)
            file.writestr(f"{number}.json", each.about)


def install(path: Path) -> int:
    """Put a bundle into Triton's cache (`TRITON_CACHE_DIR`); how many kernels there were.

    Raises:
        ValueError: if it is no bundle, or was made with another version of Triton.
    """
    try:
        file = zipfile.ZipFile(path)
        index = json.loads(file.read(_INDEX))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is no bundle of compiled kernels: {error}") from error
    with file:
        if index["triton"] != triton.__version__:
            raise ValueError(f"{path} was made with triton {index['triton']}, and this is triton {triton.__version__}")
        for number, each in enumerate(index["entries"]):
            hash = hashlib.sha256((cache.triton_key() + each["rest"]).encode()).hexdigest()
            manager, name = cache.get_cache_manager(hash), each["name"]
            about = json.loads(file.read(f"{number}.json")) | {"hash": hash}
            group = {
                f"{name}.cubin": manager.put(file.read(f"{number}.cubin"), f"{name}.cubin"),
                f"{name}.json": manager.put(json.dumps(about), f"{name}.json", binary=False),
            }
            manager.put_group(f"{name}.json", group)
    if torch.cuda.is_available():
        build_launchers(index["launchers"])
    return len(index["entries"])


def build_launchers(sources: Iterable[str]) -> None:
    """Build the functions that start kernels into Triton's cache, on all cores."""
    from triton.backends.nvidia import driver

    driver.CudaUtils()

    def build(source: str) -> None:
        folders, libraries = driver.library_dirs(), driver.libraries
        driver.compile_module_from_src(source, "__triton_launcher", folders, driver.include_dirs, libraries)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, sources))


def _launcher(kernel: Any) -> str | None:
    """The text of the function that starts a kernel; None where this Triton has one for all."""
    from triton.backends.nvidia import driver

    if not hasattr(driver, "make_launcher"):
        return None
    meta = getattr(kernel.metadata, "tensordesc_meta", None)
    return str(driver.make_launcher(kernel.src.constants, kernel.src.signature, meta))
