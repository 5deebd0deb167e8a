"""A step of the campaign, where it runs, and a worker that runs one after the other while there is time."""

from __future__ import annotations

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
    """Why a step has nothing to measure here: what it needs is not installed."""


@dataclass(frozen=True)
class Place:
    """Where steps run.

    Attributes:
        device: `"cuda"`, or `"cpu"` for a rehearsal with Triton's interpreter.
        tiny: whether problems are cut down to some cells and channels.
        candidates: a list of the launch settings that are worth a measurement (`pruning.py`).
    """

    device: str
    tiny: bool = False
    candidates: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        kind: `"ceilings"`, `"right"`, `"speed"`, `"tuning"` or `"training"`.
        name: unlike every other step's; it begins with the kind.
        seconds: that it takes, about; it is not started where they are not left.
        run: yields the fields of the ledger's lines, each as soon as it is known.
    """

    kind: str
    name: str
    seconds: float
    run: Callable[[Place], Results]

    @property
    def limit(self) -> float:
        """The seconds after which it hangs: Triton may compile for far longer than a step takes."""
        return 60 + 3 * self.seconds


class Broken(Exception):
    """The device answers no more in this process: an earlier kernel read or wrote where it may not."""


def work(
    steps: Iterable[Step],
    place: Place,
    budget: float,
    say: Say,
    done: Collection[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the steps that are not `done` and whose estimates fit into the `budget`, in order.

    A step that raises is a line with the error, and the next one follows.

    Args:
        say: is told `{"begin": name, "limit": seconds}` before a step, and `{"line": fields}` with each result. The
            last line of a step has `"last": True`.

    Raises:
        Broken: if the process is of no further use; the line with the error was said.
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
    """The fields of a line that tells of an error; an `Absent` is none, but a reason."""
    if isinstance(error, Absent):
        return {"absent": str(error)}
    where = traceback.format_exception(error)[-6:]
    return {
        "error": (str(error).strip() or type(error).__name__)[:1000],
        "error_type": type(error).__name__,
        "traceback": "".join(where)[-3000:],
    }


def _answers(place: Place) -> bool:
    try:
        place.wait()
        torch.ones(1, device=place.device).add_(1)
        place.wait()
    except RuntimeError:
        return False
    return True
