"""The benchmark as a whole: what is measured, shown and written."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from pliant.bench import machine, peers, report
from pliant.bench.measure import measure
from pliant.bench.memory import measure_memory
from pliant.bench.memory import why_not as memory_why_not
from pliant.bench.rows import (
    CONVOLUTION_HEAD,
    CONVOLUTIONS,
    POOLING_HEAD,
    POOLINGS,
    CallRow,
    ConvRow,
    PoolRow,
    variants,
)
from pliant.console import Console
from pliant.ops import _native
from pliant.outputs import Outputs

Row = TypeVar("Row", ConvRow, PoolRow)


def run(
    *,
    threads: int | None = None,
    seconds: float = 30.0,
    only: str | None = None,
    operators: bool = True,
    memory: bool = False,
    network: bool = False,
    scaling: Path | None = None,
    chart: Path | None = None,
    out: Path | None = None,
    markdown: bool = False,
    convolutions: Sequence[ConvRow] = CONVOLUTIONS,
    poolings: Sequence[PoolRow] = POOLINGS,
) -> bool:
    """Measure, show the tables, and write the numbers.

    Args:
        threads: for every implementation; torch's number by default.
        seconds: for each row, half of it for each pass; never fewer than three rounds.
        only: take the rows whose names contain this; x and -> stand for × and →.
        operators: time the operators.
        memory: measure what the convolutions need beyond their tensors.
        network: time a training step of a whole network.
        scaling: a picture to draw, of how the cost grows.
        chart: a picture to draw of the convolutions beside their peers; a JSON file of its name goes with it.
        out: a JSON file for every number.
        markdown: print the tables as Markdown instead.
        convolutions, poolings: the rows.

    Returns:
        Whether every implementation that ran was right.

    Raises:
        OSError: if there is no folder for a file to write.
        ValueError: if no row is called so, or a file to write is there already and is not Pliant's.
    """
    if chart is not None:
        if not operators:
            raise ValueError("a chart shows the operators, which are not to be timed")
        out = chart.with_suffix(".json") if out is None else out
    outputs = {path: Outputs.file(path) for path in _different(out, scaling, chart)}
    if only is not None:
        convolutions, poolings = _called(only, convolutions), _called(only, poolings)
        if not convolutions and not poolings:
            raise ValueError(f"no row is called {only!r}; rows are called like {CONVOLUTIONS[0].name!r}")
    kinds = ("convolution", "variants", "pooling", "network", "memory", "scaling")
    results: dict[str, list[Any]] = {kind: [] for kind in kinds}
    memory_reason = memory_why_not() if memory else None
    with _threads(threads) as count:
        about = _about(count, seconds) | {"why_no_memory": memory_reason}
        if operators:
            results["convolution"] = _rows(convolutions, peers.CONVOLUTION, count, seconds)
            results["variants"] = _rows(variants(convolutions), peers.VARIANTS, count, seconds)
            results["pooling"] = _rows(poolings, peers.POOLING, count, seconds)
        if network:
            results["network"] = _network(seconds)
        if memory and memory_reason is None:
            results["memory"] = _memory(convolutions, count)
        if scaling is not None:
            results["scaling"] = _scaling(outputs[scaling], count, seconds)
    if chart is not None and results["convolution"]:
        from pliant.bench.chart import draw  # needs matplotlib

        with outputs[chart].writing(chart.name) as (place,):
            draw(results["convolution"], place, CONVOLUTION_HEAD, f"{report.summary(about)}; {about['date']}")
    _show(report.summary(about), _tables(results, memory_reason), markdown)
    if out is not None:
        found = {name: [asdict(result) for result in each] for name, each in results.items()}
        with outputs[out].writing(out.name) as (place,):
            place.write_text(json.dumps({"about": about} | found, indent=1, allow_nan=False) + "\n")
    return not any(getattr(result, "wrong", None) for each in results.values() for result in each)


def _different(*paths: Path | None) -> list[Path]:
    """The files to write, each of which must be another."""
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise ValueError(f"two results cannot be written to one file: {', '.join(map(str, given))}")
    return given


def _called(text: str, rows: Sequence[Row]) -> list[Row]:
    def typed(name: str) -> str:
        return name.replace("×", "x").replace("→", "->")

    return [row for row in rows if typed(text) in typed(row.name)]


def _rows(
    rows: Sequence[ConvRow | PoolRow], columns: Mapping[str, peers.Column], threads: int, seconds: float
) -> list[Any]:
    found = []
    for row in rows:
        _say(row.name)
        found.append(measure(row, columns, threads, seconds))
    return found


def _network(seconds: float) -> list[Any]:
    from pliant.bench.network import measure_network  # needs timm

    _say("a network's training step")
    return [measure_network(seconds)]


def _memory(rows: Sequence[ConvRow], threads: int) -> list[Any]:
    found = []
    for row in rows:
        if isinstance(row, CallRow):  # which needs as much as the row without
            continue
        _say(f"memory, {row.name}")
        found.append(measure_memory(row, threads))
    return found


def _scaling(outputs: Outputs, threads: int, seconds: float) -> list[Any]:
    from pliant.bench.scaling import draw, measure_scaling, points  # needs matplotlib

    panels = []
    for quantity, along in points(threads).items():
        _say(f"scaling with {quantity}")
        panels.append(measure_scaling(quantity, along, seconds))
    with outputs.writing(*outputs.names) as (place,):
        draw(panels, place)
    return panels


def _say(doing: str) -> None:
    Console(stderr=True).print(f"{doing} ...")


def _show(summary: str, tables: Sequence[report.Table], markdown: bool) -> None:
    if markdown:
        print("\n".join((f"{summary}\n", *(table.markdown() for table in tables))))
        return
    console = Console()
    console.print(summary)
    for table in tables:
        table.show(console)


def _tables(results: Mapping[str, list[Any]], memory_reason: str | None) -> list[report.Table]:
    tables = []
    reason = _native.why_not()
    ran_reference = [f"Pliant ran its reference, in plain PyTorch: {reason}."] if reason else []
    if results["convolution"]:
        headings = {name: f"{name} (reference)" for name in (peers.PLIANT, peers.PLIANT_BFLOAT16)} if reason else {}
        tables += report.row_tables("Deformable convolution", CONVOLUTION_HEAD, results["convolution"], headings)
        tables[-1].notes[:0] = ran_reference
    if results["variants"]:
        title = "Deformable convolution with a mask and in half precision"
        tables += report.row_tables(title, CONVOLUTION_HEAD, results["variants"], {})
        tables[-1].notes[:0] = ran_reference
    if results["pooling"]:
        tables += report.row_tables("Deformable RoI pooling", POOLING_HEAD, results["pooling"], {})
    if results["network"]:
        tables += report.row_tables("A network's training step", "network, backbone, image", results["network"], {})
    if results["memory"]:
        tables += report.memory_tables(CONVOLUTION_HEAD, results["memory"])
    if memory_reason:
        tables.append(report.Table("Memory", ["not measured"], [[memory_reason]]))
    wrong = [[line] for panel in results["scaling"] for line in panel.wrong]
    if wrong:
        tables.append(report.Table("Scaling", ["wrong, and so not timed"], wrong))
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
