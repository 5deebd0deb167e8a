"""No figure of a GPU stands in the documentation that the ledger does not have."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pliant.bench.gpu import ledger, page, table
from pliant.bench.rows import ConvRow

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/README.md")])


@pytest.mark.parametrize("path", page.PAGES, ids=str)
def test_the_parts_of_a_page_are_the_ledgers(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert "<!-- gpu: " in text
    assert page.rewritten(text, ledger.read(ROOT / ledger.DEFAULT)) == text, "run: python -m pliant.bench.gpu --page"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_claims_a_figure_of_a_gpu_elsewhere(path: Path) -> None:
    assert page.claims(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("On an H100 the forward takes 0.21 ms.", 1),
        ("Fine. On an NVIDIA A100 it is 3 times as fast as\ntorchvision. Fine.", 1),
        ("| H100 | 0.2 ms |\n| CPU | 3 ms |", 1),
        ("An RTX 4090 reaches 40 % of the roofline.", 1),
        ("It is faster than torchvision on an H200.", 1),
        ("<!-- gpu: speed -->\nAn H100 takes 1 ms.\n<!-- /gpu: speed -->", 0),
        ("Compiled for sm_90 with 202 registers.", 0),
        ("Needs an A100 or newer.", 0),
        ("The forward takes 1.2 ms on this CPU.", 0),
        ("On a GPU it takes 1.2 ms.", 1),
        ("CUDA kernels take half the time.", 1),
        ("On GPUs half precision is served, too.", 0),
    ],
)
def test_claims_are_found(text: str, claims: int) -> None:
    assert len(page.claims(text)) == claims


def measured(implementation: str, ms: float, **fields: Any) -> dict[str, Any]:
    row = ConvRow(1, 512, 512, 38, 63, dilation=2, spread=1.0)
    return {
        "step": "speed of it",
        "kind": "speed",
        "gpu": "NVIDIA H100",
        "key": asdict(row) | {"dtype": "bfloat16", "layout": "channels last"},
        "pass": "forward + backward",
        "implementation": implementation,
        "device": {"median_ms": ms},
        "eager": {"median_ms": 10 + ms},
        "right": True,
        "peak_mib": 12.4,
        "roofline": 0.25,
        "commit": "abc",
        "date": "2026-11-26T10:00:00+00:00",
        "versions": {"torch": "2.11"},
        "driver": "580",
    } | fields


def without_device(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "device"}


def test_tables_are_made_of_the_last_measurement() -> None:
    old = [measured("Pliant", 9.0), measured("conv2d (cuDNN)", 1.0, last=True)]
    new = [
        measured("conv2d (cuDNN)", 1.0),
        measured("Pliant", 1.5),
        without_device(measured("torchvision", 6.0, right=False, last=True)),
    ]
    grouped = measured("Pliant", 44.0, step="speed of groups")
    grouped["key"] = grouped["key"] | {"groups": 32}
    beside = [
        measured(name, ms, step="beside torchvision", kind="beside")
        for name, ms in (("conv2d (cuDNN)", 1.0), ("Pliant", 2.0), ("torchvision", 20.0))
    ]
    older = [measured("Pliant", 55.0, step="speed of another", kernels="older", last=True)]
    rehearsed = [measured("Pliant", 77.0, gpu="none: rehearsed on a CPU")]
    text = "".join(f"<!-- gpu: {name} -->\nold\n<!-- /gpu: {name} -->\n" for name in ("speed", "beside", "summary"))
    found = page.rewritten(text, [*older, *old, *beside, grouped, *new, *rehearsed])
    problem = "1, 512→512, 38×63, 3×3, 2, 1"
    assert f"| {problem}; 1, channels last | 1 | 1.50 | 11 | 1.05 | 1.45 (wrong) | 25% | 12 / 12 |" in found
    assert f"| {problem}; 1, channels last | 1 | 2.00 | 20.00 | 0.10 |" in found
    assert f"| {problem}, 32 groups; 1, channels last | - | 44 ms |" in found
    assert "abc, 2026-11-26; torch 2.11, driver 580" in found
    assert "On an NVIDIA H100" in found
    assert "is 1.5 of the plain convolution's on the device, 0.1 of torchvision's on the device and" in found
    assert "and 0.72 of torchvision's in eager calls" in found
    assert "9.00" not in found
    assert "77" not in found
    assert "55.0" not in found
    assert "[3 measurements]" in found
    assert "old" not in found
    assert page.claims(found) == []
    assert page.rewritten(found, [*old, *beside, grouped, *new]) == found
    with pytest.raises(ValueError, match=r"must be one of right, speed.*got 'sped'"):
        page.rewritten("<!-- gpu: sped -->\n<!-- /gpu: sped -->", [])


def test_the_other_tables() -> None:
    checks = [
        {"step": "right: a", "kind": "right", "key": {"dtype": "bfloat16"}, "error64": 1e-3, "right": True},
        {"step": "right: a", "kind": "right", "key": {"dtype": "bfloat16"}, "error64": None, "right": False},
        {"step": "right: t", "kind": "right", "key": {"tests": "tests/x.py"}, "passed": 3, "failed": 1, "right": False},
        {"step": "right: s", "kind": "right", "key": {"tool": "memcheck"}, "right": True, "last": True},
        {"step": "right: o", "kind": "right", "key": {"check": "stream"}, "error64": 2e-7, "right": True},
    ]
    key = {"network": "DeepLab", "precision": "bfloat16", "image": [512, 1024], "backbone": "resnet101"}
    steps = [
        {"step": "training x", "kind": "training", "key": key, "implementation": name, "device": {"median_ms": ms}}
        for name, ms in (("plain", 20.0), ("deformable", 25.0))
    ]
    common = {name: value for name, value in measured("Pliant", 1.0).items() if name in
              ("gpu", "commit", "date", "versions", "driver")}  # fmt: skip
    lines = [line | common for line in (*checks, *steps)]
    timed = [measured("Pliant", 3.0), measured("conv2d (cuDNN)", 2.0, last=True)]
    found = page.rewritten("<!-- gpu: summary -->\n<!-- /gpu: summary -->", [*timed, *lines])
    assert "A training step there (x) takes 1.2 of the plain network's time." in found
    found = page.rewritten(
        "<!-- gpu: right -->\n<!-- /gpu: right --><!-- gpu: training -->\n<!-- /gpu: training -->", lines
    )
    assert "| NVIDIA H100 | abc | bfloat16 | 1 of 2 | 1.0e-03 |" in found
    assert "| NVIDIA H100 | abc | `tests/x.py` | 3 of 4 | - |" in found
    assert "| NVIDIA H100 | abc | compute-sanitizer memcheck | 1 of 1 | - |" in found
    assert "| NVIDIA H100 | abc | stream | 1 of 1 | 2.0e-07 |" in found
    assert "| NVIDIA H100, DeepLab, resnet101, 512×1024, bfloat16 | 20 | 1.25 |" in found
    busy = [line | {"busy": {"median_ms": ms}} for line, ms in zip(lines[-2:], (8.0, 9.0), strict=True)]
    found = page.rewritten("<!-- gpu: training -->\n<!-- /gpu: training -->", busy)
    assert "| NVIDIA H100, DeepLab, resnet101, 512×1024, bfloat16 | 20 | 1.25 | 8 | 1.12 |" in found
    found = page.rewritten("<!-- gpu: summary -->\n<!-- /gpu: summary -->", [*timed, *busy])
    assert "Its kernels alone, without the time of their launches, take 1.1." in found
    later = {**checks[3], **common, "kernels": "later", "commit": "def"}  # of other kernels: the others stay
    found = page.rewritten("<!-- gpu: right -->\n<!-- /gpu: right -->", [*lines, later])
    assert "| NVIDIA H100 | abc | stream | 1 of 1 | 2.0e-07 |" in found
    assert "| NVIDIA H100 | def | compute-sanitizer memcheck | 1 of 1 | - |" in found
    assert "| abc | compute-sanitizer" not in found


def tuned(ratio: float | None, tiles: dict[str, int], **fields: Any) -> dict[str, Any]:
    return {
        "step": "tuning of forward: it",
        "kind": "tuning",
        "capability": [9, 0],
        "kernels": "new",
        "kernel": "forward",
        "pass": "forward",
        "key": {"dtype": "bfloat16"},
        "shape": {"cells": 2394, "outs": 512, "groups": 1, "unit": 512, "taps": 9},
        "tiles": tiles,
        "chosen": ratio is None,
        "device": {"median_ms": 1.0},
        "to_chosen": ratio,
        "right": True,
    } | fields


def designed(ratio: float | None, design: str, what: str) -> dict[str, Any]:
    return tuned(ratio, {}, kernel=None, design=design) | {"pass": what}


def test_the_fastest_right_settings_make_the_table(tmp_path: Path) -> None:
    a, b, c, d = ({"cells": 64, "warps": warps} for warps in (4, 8, 16, 32))
    lines = [
        tuned(0.1, d, kernels="old"),
        tuned(None, d),
        tuned(0.8, a),
        tuned(0.7, b),
        tuned(0.5, c, right=False),
        *(tuned(None, d, kernel="gather"), tuned(0.95, a, kernel="gather")),
        *(tuned(None, d, kernel="columns"), tuned(0.995, a, kernel="columns")),
        tuned(0.4, a, capability=None),
        *(designed(None, "fused", "forward"), designed(0.9, "columns", "forward")),
        *(designed(None, "fused", "backward"), designed(1.2, "columns", "backward")),
    ]
    path = tmp_path / "tiles.json"
    table.write(lines, path)
    found = {entry["kernel"]: entry for entry in json.loads(path.read_text())}
    assert {kernel: entry.get("tiles") or entry["design"] for kernel, entry in found.items()} == {
        "forward": b,
        "gather": a,
        "columns": d,  # what was in force stays where another is faster by noise
        "forward_by_columns": "columns",
        "backward_by_columns": "fused",
    }
    assert found["forward"]["capability"] == [9, 0]
    assert found["forward"]["shape"]["cells"] == 2394
    assert found["forward"]["of_the_time"] == 0.7
    later = [*lines, tuned(0.9, b)]
    assert {entry["kernel"]: entry for entry in table.table(later)}["forward"]["tiles"] == a
    with pytest.raises(ValueError, match="no tuning lines of a GPU"):
        table.write([], path)
