"""Functions in processes of their own, which have imported everything before they begin: a start costs no seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["lightning.pytorch", "timm", "torchmetrics.detection", "pliant.engine", "pliant.commands.train"]
)


def start(output: Path, function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Begin a call; what it prints goes to a file.

    Args:
        output: the file, which is made or appended to.
        function: of a module, so that the process finds it by name.
        arguments: what it is called with; they are pickled.
    """
    process = _context.Process(target=_call, args=(output, function, *arguments))
    process.start()
    return process


def ending(process: BaseProcess) -> int:
    """Wait for the process, and get its exit code: negative, after a signal."""
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _call(output: Path, function: Callable[..., None], *arguments: Any) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    function(*arguments)
