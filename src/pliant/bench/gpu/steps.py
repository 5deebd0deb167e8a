"""A step of the campaign, where it runs, and a worker that runs one after the other while there is time."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Results = Iterator[Mapping[str, Any]]
Say = Callable[[Mapping[str, Any]], None]


class Absent(Exception):
    """Raised by a step that has nothing to measure here, because what it needs is not installed."""


@dataclass(frozen=True)
class Place:
    """The device that steps run on, and the size of their problems.

    Attributes:
        device: `"cuda"`, or `"cpu"` for a rehearsal in Triton's interpreter.
        tiny: Whether problems are reduced to a few cells and channels.
        candidates: File with a list of the launch settings that are worth a measurement (`pruning.py`).
    """

    device: str
    tiny: bool = False
    candidates: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Step:
    """A step of the campaign.

    Attributes:
        kind: `"ceilings"`, `"right"`, `"speed"`, `"tuning"` or `"training"`.
        name: Unique name, which begins with the kind.
        seconds: Estimated time. A step starts only if this much time is left.
        run: Yields the fields of each line of the ledger as soon as they are known.
    """

    kind: str
    name: str
    seconds: float
    run: Callable[[Place], Results]

    @property
    def limit(self) -> float:
        """Seconds without a result after which the step counts as hung. Compilation may take far longer than a step."""
        return 60 + 3 * self.seconds


class Broken(Exception):
    """Raised when the device no longer responds in this process, after a kernel accessed invalid memory."""


def work(
    steps: Iterable[Step],
    place: Place,
    budget: float,
    say: Say,
    done: Collection[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the steps that are not `done` and whose estimates fit into the `budget`, in order.

    If a step raises, its error becomes a line of the ledger, and the next step follows.

    Args:
        say: Called with `{"begin": name, "limit": seconds}` before a step, and `{"line": fields}` with each result. The
            last line of a step has `"last": True`.

    Raises:
        Broken: If the process cannot run further steps. The line with the error was passed to `say`.
    """
    end = clock() + budget
    for step in steps:
        if step.name in done or clock() + step.seconds > end:
            continue
        say({"begin": step.name, "limit": step.limit})
        start = clock()
        held: dict[str, Any] = {}
        try:
            for result in step.run(place):
                if held:
                    say({"line": held})
                held = {"step": step.name, "kind": step.kind} | dict(result)
            place.wait()
        except Exception as error:
            if held:
                say({"line": held})
            held = {"step": step.name, "kind": step.kind, **described(error)}
        held = held or {"step": step.name, "kind": step.kind}
        say({"line": held | {"took": round(clock() - start, 2), "last": True}})
        if "error_type" in held and not _answers(place):
            raise Broken(held["error"])


def described(error: Exception) -> dict[str, Any]:
    """Return the fields of a line about an error. `Absent` and a package that is not installed are no errors."""
    if isinstance(error, Absent):
        return {"absent": str(error)}
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("pliant"):
        return {"absent": f"{error.name} is not installed"}
    # Files by their folder and name: where they lie on a machine is of no interest.
    where = "".join(traceback.format_exception(error)[-6:])
    return {
        "error": (str(error).strip() or type(error).__name__)[:1000],
        "error_type": type(error).__name__,
        "traceback": re.sub(r'File "[^"]*?([^/"]+/[^/"]+)"', r'File "\1"', where)[-3000:],
    }


def _answers(place: Place) -> bool:
    try:
        place.wait()
        torch.ones(1, device=place.device).add_(1)
        place.wait()
    except RuntimeError:
        return False
    return True
