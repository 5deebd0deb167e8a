"""The benchmark as a whole: what is measured, shown and written."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pliant.bench import machine, peers, report
from pliant.bench.measure import RowResult, measure
from pliant.bench.rows import CONVOLUTION_HEAD, CONVOLUTIONS, POOLING_HEAD, POOLINGS, ConvRow, PoolRow
from pliant.ops import _native


def run(
    *,
    threads: int | None = None,
    seconds: float = 30.0,
    out: Path | None = None,
    markdown: bool = False,
    convolutions: Sequence[ConvRow] = CONVOLUTIONS,
    poolings: Sequence[PoolRow] = POOLINGS,
) -> bool:
    """Measure, show the tables, and write the numbers.

    Args:
        threads: for every implementation; torch's number by default.
        seconds: for each row, half of it for each pass; never fewer than three rounds.
        out: a JSON file for every number.
        markdown: print the tables as Markdown instead.
        convolutions, poolings: the rows.

    Returns:
        Whether every implementation that ran was right.
    """
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} to")
    show, progress = Console(), Console(stderr=True)
    with _threads(threads) as count:
        about = _about(count, seconds)
        results: dict[str, Any] = {
            "convolution": _rows(convolutions, peers.CONVOLUTION, count, seconds, progress),
            "pooling": _rows(poolings, peers.POOLING, count, seconds, progress),
        }
    tables = _tables(results)
    if markdown:
        print("\n".join(table.markdown() for table in tables))
    else:
        for table in tables:
            table.show(show)
    if out is not None:
        out.write_text(json.dumps({"about": about} | _plain(results), indent=1) + "\n")
    return not any(row.wrong for row in (*results["convolution"], *results["pooling"]))


def _rows(
    rows: Sequence[ConvRow | PoolRow],
    columns: Mapping[str, peers.Column],
    threads: int,
    seconds: float,
    progress: Console,
) -> list[RowResult]:
    found = []
    for row in rows:
        progress.print(f"{row.name} ...", highlight=False)
        found.append(measure(row, columns, threads, seconds))
    return found


def _tables(results: Mapping[str, Any]) -> list[report.Table]:
    tables = []
    reason = _native.why_not()
    headings = {peers.PLIANT: "Pliant (reference)"} if reason else {}
    if results["convolution"]:
        found = report.row_tables("Deformable convolution", CONVOLUTION_HEAD, results["convolution"], headings)
        if reason:
            found[-1].notes.insert(0, f"Pliant ran its reference, in plain PyTorch: {reason}.")
        tables += found
    if results["pooling"]:
        tables += report.row_tables("Deformable RoI pooling", POOLING_HEAD, results["pooling"], {})
    return tables


def _about(threads: int, seconds: float) -> dict[str, Any]:
    return {
        "kernels": _native.current(),
        "why_not_compiled": _native.why_not(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": machine.cpu_name(),
        "cores": machine.cores(),
        "bfloat16_instructions": machine.multiplies_bfloat16(),
        "threads": threads,
        "seconds_a_row": seconds,
        "versions": machine.versions(),
    }


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _plain(value: Any) -> Any:
    """What JSON can hold: dataclasses become dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
