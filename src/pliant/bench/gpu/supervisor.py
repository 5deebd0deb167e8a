"""Runs the campaign's worker in a process of its own, and starts another one if that process dies or hangs.

A kernel that accesses invalid memory ends its process, and a kernel that never finishes blocks it. So this process does
not import torch. It writes the ledger, and the worker reports over a pipe, in lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Record = Callable[[dict[str, Any]], None]

_GRACE = 2.0  # seconds that a worker whose time is over has to end by itself
_START = 180.0  # and that it has to import torch and find the device


class WorkerFailed(Exception):
    """Raised when a worker ends before it begins a step."""


def supervise(command: Sequence[str], end: float, record: Record) -> None:
    """Run workers until one has nothing left to do, or until `end`.

    Args:
        command: Command of a worker. `--events FD --end SECONDS` is added to it.
        end: Deadline, as `time.time()` counts.
        record: Called with each line of the ledger.

    Raises:
        WorkerFailed: If a worker ends or hangs before it begins a step, because another one would do the same.
    """
    while time.time() < end:
        told = _Told(record)
        ended = _run(command, end, told)
        if ended is None or time.time() >= end:
            return
        if not told.about:
            raise WorkerFailed(f"the worker {ended} before it began: its last words are above")
        if told.step is not None:
            record({"step": told.step, "kind": told.step.split()[0], "error": f"the process {ended}",
                    "error_type": "Died", **told.about, "last": True})  # fmt: skip


class _Told:
    """Keeps what a worker has reported: the machine, its current step, and how long the step may take."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.about: dict[str, Any] = {}
        self.step: str | None = None
        self.limit = _START

    def hear(self, text: bytes) -> None:
        event = json.loads(text)
        if "about" in event:
            self.about = event["about"]
        elif "begin" in event:
            self.step, self.limit = event["begin"], event["limit"]
        elif "line" in event:
            self.record(event["line"] | self.about)
            if event["line"].get("last"):
                self.step = None


def _run(command: Sequence[str], end: float, told: _Told) -> str | None:
    """Run one worker. Return how it ended, or None if it finished with status 0."""
    reading, writing = os.pipe()
    added = ["--events", str(writing), "--end", repr(end)]
    # A group of its own, with all that it starts; not a session, so that it ends with this process's terminal.
    worker = subprocess.Popen([*command, *added], pass_fds=[writing], stdout=sys.stderr, process_group=0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            for line in _lines(pipe.fileno(), lambda: min(told.limit, end + _GRACE - time.time())):
                told.hear(line)
        status = worker.wait(timeout=_GRACE * 5)
    except TimeoutError:
        return f"hung: it gave no sign for {told.limit:.0f} s"
    except subprocess.TimeoutExpired:
        return "did not end"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    if status == 0:
        return None
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _lines(pipe: int, seconds: Callable[[], float]) -> Iterator[bytes]:
    """Yield complete lines until the writer closes. Raise TimeoutError if none arrives for `seconds()`."""
    held = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, seconds()))
        if not ready:
            raise TimeoutError
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return
        *whole, held = (held + piece).split(b"\n")
        yield from whole
