"""The command line of the campaign.

    python -m pliant.bench.gpu --budget 600                   # stops before 600 s are over
    python -m pliant.bench.gpu --list                         # the steps with their estimates
    python -m pliant.bench.gpu --steps speed --only bfloat16  # some of them
    python -m pliant.bench.gpu --page                         # writes the ledger's tables into the documentation
    python -m pliant.bench.gpu --table                        # writes its launch settings into the shipped table
    TRITON_INTERPRET=1 python -m pliant.bench.gpu --device cpu --ledger /tmp/rehearsal.jsonl   # without a GPU

Results are appended to `docs/gpu/ledger.jsonl`. A second call skips the steps that the ledger has for this GPU and
these kernels, also those with errors; `--retry` repeats the latter. Without a repository, `PLIANT_COMMIT` names the
commit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pliant.bench.gpu import ledger
from pliant.bench.gpu.report import is_wrong, sentence
from pliant.bench.gpu.supervisor import WorkerFailed, supervise


def main(words: Sequence[str] | None = None) -> int:
    """Run the command, and return 1 if a result was wrong."""
    parser = _parser()
    given = parser.parse_args(words)
    try:
        lines = ledger.read(given.ledger)
        if given.page:
            from pliant.bench.gpu.page import write

            write(lines)
            return 0
        if given.table:
            from pliant.bench.gpu.table import write as write_table

            write_table(lines)
            return 0
        if given.events is not None:
            return _work(given)
        if given.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError("a rehearsal on the CPU needs Triton's interpreter: set TRITON_INTERPRET=1")
        if given.list or given.steps or given.only:
            _require_steps(given)
    except ValueError as error:
        parser.error(str(error))
    if given.list:
        return 0
    return _supervise(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pliant.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=_seconds, default=600.0, metavar="SECONDS", help="for all; 600 by default")
    parser.add_argument("--ledger", type=Path, default=ledger.DEFAULT, metavar="FILE", help=f"{ledger.DEFAULT}")
    parser.add_argument("--steps", metavar="KINDS", help="of ceilings, right, speed, tuning and training, by commas")
    parser.add_argument("--only", metavar="REGEX", help="steps whose names contain this")
    parser.add_argument("--candidates", type=_listed, metavar="JSON", help="tune with these, of pliant.bench.gpu.ahead")
    parser.add_argument("--retry", action="store_true", help="steps again that ended with an error")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--list", action="store_true", help="show the steps, and run none")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/performance.md")
    parser.add_argument("--table", action="store_true", help="write the table of launch settings")
    parser.add_argument("--events", type=int, help=argparse.SUPPRESS)  # these three: of the worker
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--retry-before", help=argparse.SUPPRESS)
    return parser


def _listed(text: str) -> Path:
    from pliant.bench.gpu.pruning import read

    try:
        read(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value


def _steps(given: argparse.Namespace, lines: list[dict[str, Any]], gpu: str) -> tuple[Any, list[Any]]:
    from pliant.bench.gpu import roofline
    from pliant.bench.gpu.plan import KINDS, plan
    from pliant.bench.gpu.steps import Place

    place = Place(given.device, tiny=given.device == "cpu", candidates=given.candidates)
    kinds = given.steps.split(",") if given.steps else KINDS

    def ceilings() -> roofline.Ceilings | None:
        return roofline.from_ledger([*lines, *ledger.read(given.ledger)], gpu)

    return place, plan(place, ceilings, kinds, given.only)


def _require_steps(given: argparse.Namespace) -> None:
    """Check that there are steps, and print them if asked to."""
    _, steps = _steps(given, [], "")
    if given.list:
        total = 0.0
        for step in steps:
            total += step.seconds
            print(f"{step.seconds:6.1f} s  {total:8.1f} s  {step.name}")


def _supervise(given: argparse.Namespace) -> int:
    start = time.time()
    command = [sys.executable, "-m", "pliant.bench.gpu", "--ledger", str(given.ledger), "--device", given.device]
    for name in ("steps", "only", "candidates"):
        command += [f"--{name}", str(getattr(given, name))] if getattr(given, name) else []
    command += ["--retry-before", ledger.now()] if given.retry else []
    wrong: list[str] = []

    def record(line: dict[str, Any]) -> None:
        dated = line | {"date": ledger.now()}
        ledger.append(given.ledger, dated)
        print(f"[{time.time() - start:6.1f} s] {sentence(dated)}", flush=True)
        if is_wrong(dated):
            wrong.append(dated["step"])

    try:
        supervise(command, start + given.budget, record)
    except WorkerFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    print(f"{given.ledger}: {time.time() - start:.0f} s of {given.budget:.0f} s; wrong: {len(wrong)}")
    return 1 if wrong else 0


def _work(given: argparse.Namespace) -> int:
    """Run the steps as a worker, and report them."""
    import torch

    from pliant.bench.gpu.steps import Broken, work
    from pliant.ops import _gpu, _native

    kernels = _native.use(_native.TRITON) if given.device == "cpu" else nullcontext()
    with os.fdopen(given.events, "w", buffering=1) as events, kernels:

        def say(event: Any) -> None:
            events.write(json.dumps(ledger.finite(event), allow_nan=False) + "\n")

        if reason := _gpu.why_not(torch.ones(1, device=given.device)):
            raise SystemExit(f"Pliant would run its reference here, not the Triton kernels: {reason}")
        about = ledger.about(given.device)
        say({"about": about})
        lines = ledger.read(given.ledger)
        done = ledger.finished(lines, about["gpu"], about["kernels"])
        if given.retry_before:
            done -= ledger.failed(lines, given.retry_before)
        place, steps = _steps(given, lines, about["gpu"])
        try:
            work(steps, place, given.end - time.time(), say, done)
        except Broken:
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
