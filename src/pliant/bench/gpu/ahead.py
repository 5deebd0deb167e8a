"""Kernels compiled before there is a GPU, so that no second on it goes to the compiler.

    python -m pliant.bench.gpu.ahead --table                      # what ships: registers, spills, shared memory
    python -m pliant.bench.gpu.ahead --candidates best.json       # prune the candidates of each kernel to a dozen
    python -m pliant.bench.gpu.ahead --pack kernels.zip           # compile what the campaign launches, and these
    python -m pliant.bench.gpu.ahead --install kernels.zip        # on the GPU: into TRITON_CACHE_DIR
    python -m pliant.bench.gpu.ahead --compile-here --jobs 16     # on the GPU, without a bundle

Kernels that are in Triton's cache are not compiled again. Entries fit the kernels' text to the line: compile when it
is final.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch

from pliant.bench.gpu import bundle, compiling, pruning
from pliant.bench.gpu.compiling import Launch
from pliant.bench.gpu.estimate import GPUS, Figures, blocks
from pliant.ops import _native

TARGETS = tuple(sorted(GPUS, reverse=True))
_HEAD = (
    "| kernel | dtype | tile | target | threads | registers | spilled, bytes | shared, KiB | blocks a multiprocessor |"
)


class Made(NamedTuple):
    """A launch that was compiled for a target, or what the compiler said instead."""

    launch: Launch
    capability: int
    entry: bundle.Entry | None = None
    figures: Figures | None = None
    error: str = ""


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; 1 where a kernel that ships does not compile."""
    parser = _parser()
    given = parser.parse_args(words)
    try:
        if given.install:
            print(f"{given.install}: {bundle.install(given.install)} kernels are in Triton's cache")
            return 0
        if not (given.table or given.candidates or given.pack or given.compile_here):
            raise ValueError("say what is wanted: --table, --candidates, --pack, --install or --compile-here")
        if _native.interpreting():
            raise ValueError("kernels are interpreted in this process: unset TRITON_INTERPRET")
        if reason := compiling.why_not():
            raise ValueError(reason)
        return _compile(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pliant.bench.gpu.ahead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", action="store_true", help="print what ships, as Markdown")
    parser.add_argument("--candidates", type=Path, metavar="JSON", help="prune, and write who is left with estimates")
    parser.add_argument("--pack", type=Path, metavar="ZIP", help="write what was compiled")
    parser.add_argument("--install", type=Path, metavar="ZIP", help="put a bundle into Triton's cache")
    parser.add_argument("--compile-here", action="store_true", help="fill Triton's cache")
    parser.add_argument(
        "--target",
        type=int,
        action="append",
        choices=TARGETS,
        help="a compute capability; by default that of the GPU here, or 90",
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="processes that compile; 1 by default")
    parser.add_argument("--problems", type=int, default=96, help="of the campaign's order of speeds; 96 by default")
    parser.add_argument("--most", type=_positive, default=12, help="candidates left of each kernel and problem")
    parser.add_argument("--only", default="", metavar="REGEX", help="of the problems whose candidates are pruned")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def _targets() -> Sequence[int]:
    """The GPU's that is here, else the first that GPUs are described for."""
    if not torch.cuda.is_available():
        return TARGETS[:1]
    major, minor = torch.cuda.get_device_capability()
    if (here := 10 * major + minor) not in TARGETS:
        raise ValueError(
            f"this GPU is sm_{here}, and kernels are compiled beforehand for {', '.join(map(str, TARGETS))}"
        )
    return (here,)


def _compile(given: argparse.Namespace) -> int:
    from pliant.bench.gpu import launched

    targets = given.target or _targets()
    choices = {target: list(launched.choices(given.only, target)) for target in targets if given.candidates}
    if given.candidates and not choices[targets[0]]:
        raise ValueError(f"no problem that is tuned is called like {given.only!r}")
    made: dict[tuple[str, int], Made] = {}
    with _pool(given.jobs) as pool:
        if given.table or given.pack or given.compile_here:
            for target in targets:
                listed = launched.table(target) if given.table else launched.campaign(given.problems, target)
                compile_all(pool, ((launch, target) for launch in listed), made)
        failed = [each for each in made.values() if each.error]
        if given.table:
            print("\n".join(_table(made.values())))
        if given.candidates:
            left = [
                found
                for target in targets
                for found in pruning.prune(choices[target], target, given.most, _figures(pool, target, made))
            ]
            given.candidates.write_text(json.dumps(left, indent=0))
            print(f"{given.candidates}: {len(left)} candidates are left")
    if given.compile_here and torch.cuda.is_available():
        bundle.build_launchers({each.entry.launcher for each in made.values() if each.entry and each.entry.launcher})
    if given.pack:
        bundle.pack(given.pack, (each.entry for each in made.values() if each.entry))
        print(f"{given.pack}: {given.pack.stat().st_size / 2**20:.1f} MiB")
    for each in failed:
        print(f"{each.launch.name} for sm_{each.capability} does not compile: {each.error}", file=sys.stderr)
    return 1 if failed else 0


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def compile_all(
    pool: ProcessPoolExecutor, wanted: Iterable[tuple[Launch, int]], made: dict[tuple[str, int], Made]
) -> None:
    """Compile what is not in `made` yet, and put it there by key and target."""
    unique = {(launch.key, target): (launch, target) for launch, target in wanted}
    tasks = [pool.submit(compile_one, *each) for key, each in unique.items() if key not in made]
    for number, task in enumerate(as_completed(tasks), 1):
        found = task.result()
        made[found.launch.key, found.capability] = found
        if number % 50 == 0 or number == len(tasks):
            print(f"{number} of {len(tasks)} compiled", file=sys.stderr, flush=True)


def compile_one(launch: Launch, capability: int) -> Made:
    """One launch for one target."""
    try:
        entry, kernel = bundle.entry(launch, capability)
        return Made(launch, capability, entry, compiling.figures(kernel))
    except Exception as error:  # of the compiler, in many classes
        return Made(launch, capability, error=f"{type(error).__name__}: {str(error)[:300]}")


def _figures(
    pool: ProcessPoolExecutor, target: int, made: dict[tuple[str, int], Made]
) -> Callable[[list[Launch]], list[Figures | None]]:
    def figures(launches: list[Launch]) -> list[Figures | None]:
        compile_all(pool, ((launch, target) for launch in launches), made)
        return [made[launch.key, target].figures for launch in launches]

    return figures


def _table(made: Iterable[Made]) -> Iterator[str]:
    yield from (_HEAD, "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for each in made:
        if each.figures:
            yield _row(each.launch, each.capability, each.figures)


def _row(launch: Launch, capability: int, figures: Figures) -> str:
    used = figures.threads, figures.registers, figures.spilled, f"{figures.shared / 1024:.0f}"
    numbers = *used, blocks(figures, GPUS[capability])
    return f"| {launch.described} | sm_{capability} | {' | '.join(map(str, numbers))} |"


if __name__ == "__main__":
    sys.exit(main())
