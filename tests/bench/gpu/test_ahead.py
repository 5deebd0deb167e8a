"""Kernels compiled without a GPU: the estimates' arithmetic, the pruning, and one compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant import ops
from pliant.bench.gpu import __main__ as campaign
from pliant.bench.gpu import machine_code, tuning
from pliant.bench.gpu.estimate import GPUS, Cost, Figures, Work, blocks, cost
from pliant.bench.gpu.problems import FIRST, Problem
from pliant.bench.gpu.pruning import Choice, kept, prune
from pliant.bench.gpu.steps import Place
from pliant.ops import _native
from pliant.ops.deform_conv2d import shipped
from pliant.ops.deform_conv2d.tiles import KERNELS, Tiles, forced

H100 = GPUS[90]
ALONE = Figures(registers=255, spilled=0, shared=0, threads=256)  # of which a multiprocessor holds one
WORK = Work(
    cells=256, channels=64, outs=128, groups=1, offset_groups=1, unit=64, taps=9, inputs=256, size=2, multiplied="half"
)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (Figures(registers=128, spilled=0, shared=0, threads=256), 2),  # 65536 registers
        (Figures(registers=129, spilled=0, shared=0, threads=256), 1),  # given out by eights: 136
        (
            Figures(registers=32, spilled=0, shared=75 << 10, threads=128),
            3,
        ),  # 228 KiB, one of each block for the system
        (Figures(registers=32, spilled=0, shared=76 << 10, threads=128), 2),
        (Figures(registers=16, spilled=0, shared=0, threads=512), 4),  # 2048 threads
        (Figures(registers=16, spilled=0, shared=0, threads=32), 32),
        (Figures(registers=32, spilled=0, shared=228 << 10, threads=128), 0),
    ],
)
def test_blocks_of_a_multiprocessor(figures: Figures, expected: int) -> None:
    assert blocks(figures, H100) == expected


def test_the_forward_counts_what_its_tiles_gather_and_multiply() -> None:
    columns = 256 * 9 * 64
    narrow, wide = (cost("forward", WORK, Tiles(64, 64, outs, stages=2)) for outs in (64, 128))
    weights, output = 64 * 128 * 9 * 2, 256 * 128 * 2
    assert wide.products == 2 * columns * 128
    assert (narrow.programs, wide.programs) == (8, 4)
    assert wide.steps == 9
    assert wide.cache == 4 * columns * 2 + 4 * weights + output
    assert narrow.cache - wide.cache == 4 * columns * 2  # every tile of output channels gathers anew
    assert narrow.products == wide.products


def test_tiles_that_are_not_filled_multiply_all_the_same() -> None:
    uneven = WORK._replace(cells=200, outs=100)
    assert cost("forward", uneven, Tiles(64, 32, 64)).products == 2 * 256 * 9 * 64 * 128


def test_gathers_through_the_first_cache_share_corners() -> None:
    corners = 4 * 256 * 9 * 64 * 2
    others = 4 * 64 * 128 * 9 * 2 + 256 * 128 * 2
    assert cost("forward", WORK, Tiles(64, 64, 128, stages=2)).cache == corners + others
    assert cost("forward", WORK, Tiles(64, 32, 128, stages=2)).cache == 2 * corners + others  # half lines
    run = cost("forward", WORK, Tiles(64, 32, 128, stages=1)).cache - others
    patch = cost("forward", WORK, Tiles(64, 32, 128, stages=1, patch=8)).cache - others
    early = cost("forward", WORK, Tiles(64, 32, 128, stages=3, early=True)).cache - others
    assert run == early == pytest.approx(corners * 65 * 2 / (4 * 64))
    assert patch == pytest.approx(corners * 81 / (4 * 64))


def test_the_backwards_count_their_additions_in_memory() -> None:
    assert cost("backward_samples", WORK, Tiles(64, 32, 64)).additions == 4 * 256 * 9 * 64
    assert cost("backward_weight", WORK, Tiles(64, 64, 128)).additions == 4 * 64 * 128 * 9  # four shares of the cells
    assert cost("gather", WORK, Tiles(16, 64)).additions == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_an_estimate(kernel: str) -> None:
    for target in GPUS.values():
        seconds = cost(kernel, WORK, Tiles(16, 32, 64, 4, 2)).seconds(target, WORK, ALONE, 2)
        assert 1e-7 < seconds < 1e-2


def test_an_estimate_is_its_slowest_part_times_the_waste_of_the_last_round() -> None:
    some = Cost(programs=133, steps=1, cache=0, memory=0, products=989e12, instructions=0)
    assert some.seconds(H100, WORK, ALONE, 2) == pytest.approx(2 * 132 / 133)
    assert some._replace(memory=3 * 3.35e12).seconds(H100, WORK, ALONE, 2) == pytest.approx(3)
    waiting = some._replace(products=0, steps=1000)
    assert waiting.seconds(H100, WORK, ALONE, 2) == pytest.approx(2 * 1000 * H100.latency)
    half = ALONE._replace(registers=128)  # one round, two under way
    assert waiting.seconds(H100, WORK, half, 3) == pytest.approx(1000 * H100.latency / 2)
    busy = waiting._replace(flat=True).seconds(H100, WORK, ALONE._replace(turn=10000), 2)
    assert busy == pytest.approx(133 * 1000 * 10000 * 256 / 33.5e12 * 2 * 132 / 133)


LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;        /* 0x0000 */
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
        /*0020*/              @!P0 BRA 0x50 ;
        /*0030*/                   FFMA R1, R2, R3, R4 ;
        /*0040*/                   FFMA R1, R2, R3, R4 ;
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR4] ;
        /*0060*/               @P1 BRA 0x90 ;
        /*0070*/               @P2 BRA 0x10 ;
        /*0080*/                   STG.E.128 [R2.64], R4 ;
        /*0090*/                   EXIT ;
"""


def test_a_turn_of_a_loop_is_counted_without_what_is_skipped() -> None:
    code = machine_code.read(LISTING)
    assert len(code) == 10
    assert machine_code.turn(code) == 5
    assert machine_code.turn(code[:7]) == 0
    assert machine_code.telling(code) == {"LDG.E.128": 1, "FFMA": 2, "HGMMA.64x128x16.F32.BF16": 1, "STG.E.128": 1}


def test_pruning_drops_what_spills_does_not_fit_or_does_not_compile(tmp_path: Path) -> None:
    good, better = Tiles(64, 32, 64, 4, 2), Tiles(64, 32, 128, 4, 3)
    spilling, large, refused = (Tiles(64, 64, outs, 4, 3) for outs in (64, 128, 256))
    found = {
        good: Figures(128, 0, 50 << 10, 128),
        better: Figures(128, 0, 50 << 10, 128),
        spilling: Figures(255, 8, 50 << 10, 128),
        large: Figures(255, 0, 228 << 10, 128),
        refused: None,
    }
    asked: list[Any] = []

    def figures(some: list[Any]) -> list[Figures | None]:
        asked.extend(some)
        return [found[each] for each in some]

    about = {"kernel": "forward", "dtype": "float16", "shape": {"cells": 256}}
    choice = Choice(about, WORK, list(found), list)
    left = prune([choice], 90, 3, figures)
    assert [each["tiles"]["outs"] for each in left] == [128, 64]
    assert left[0].items() >= about.items()
    assert left[0]["blocks"] == 4
    assert left[0]["microseconds"] < left[1]["microseconds"]
    assert sorted(asked) == sorted(found)
    assert prune([choice], 90, 1, figures) == left[:1]

    listed = tmp_path / "left.json"
    listed.write_text(json.dumps(left))
    assert [Tiles(**each) for each in kept(listed, 90, about)] == [better, good]
    assert kept(listed, 80, about) == []
    assert kept(listed, 90, about | {"dtype": "float32"}) == []


def test_the_campaign_refuses_what_is_no_list_of_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text('[{"kernel": "forward"}]')
    for name, said in (("other.json", "no list of candidates"), ("missing.json", "No such file")):
        with pytest.raises(SystemExit):
            campaign.main(["--list", "--candidates", str(tmp_path / name)])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what is wanted"),
        (["--table"], "unset TRITON_INTERPRET"),
        (["--table", "--jobs", "0"], "must be 1 or more, got 0"),
        (["--install", "missing.zip"], "No such file"),
        (["--install", __file__], "is no bundle of compiled kernels"),
    ],
)
def test_bad_commands_say_so(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", minversion="3.4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from pliant.bench.gpu import ahead

    with pytest.raises(SystemExit):
        ahead.main(words)
    assert said in capsys.readouterr().err


def test_tuning_measures_the_candidates_that_were_kept(tmp_path: Path) -> None:
    problem = Problem(FIRST[0], "bfloat16")
    tiles = [Tiles(64, 32, 64, 4, stages) for stages in (1, 2, 3)]
    about = {"capability": 90, "kernel": "forward", "dtype": "bfloat16", "shape": problem.shape}
    (tmp_path / "left.json").write_text(json.dumps([about | {"tiles": each._asdict()} for each in tiles]))
    place = Place("cpu", candidates=tmp_path / "left.json")
    assert tuning.candidates(place, problem, "forward") == tiles
    assert tuning.candidates(replace(place, tiny=True), problem, "forward") == tiles[:2]
    assert len(tuning.candidates(place, problem, "gather")) > 3  # of which the list says nothing


def test_a_trace_has_the_launches_of_a_gpu_and_runs_none() -> None:
    pytest.importorskip("triton")
    from pliant.bench.gpu.compiling import traced

    with traced() as found, forced(forward_by_columns=False):
        input = torch.empty(2, 64, 9, 11, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight = torch.empty(32, 64, 3, 3, dtype=torch.bfloat16)
        offset = torch.empty(2, 18, 9, 11)
        out = ops.deform_conv2d(input.requires_grad_(), offset, weight, padding=1)
        torch.autograd.grad(out, input, torch.empty_like(out))
        rois = torch.empty(5, 5)
        ops.roi_pool(input.detach(), rois, 7, 1 / 16)
    forward, *backward, pooling = found
    assert forward.name == "forward"
    assert (forward.arguments["out_channel"], forward.arguments["out_cell"]) == (1, 32)  # channels last, as on a GPU
    assert forward.arguments["input"].dtype == torch.bfloat16
    assert backward
    assert pooling.module == "pliant.ops.roi_pool.kernels"


def test_a_trace_takes_the_shipped_table_of_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from pliant.bench.gpu.compiling import traced

    shape = {"cells": 99, "outs": 32, "groups": 1, "unit": 64, "taps": 9}
    common = {"capability": [9, 0], "dtype": "bfloat16", "shape": shape}
    tiles = Tiles(64, 16, 16, 4, 2)
    entries = [
        common | {"kernel": "forward_by_columns", "design": "fused"},
        common | {"kernel": "forward", "tiles": tiles._asdict()},
    ]
    monkeypatch.setattr(shipped, "entries", lambda: entries)
    monkeypatch.setattr(_native, "interpreting", lambda: False)
    shipped._find.cache_clear()
    found = {}
    for capability in (90, 80):
        with traced(capability) as launches:
            input, weight = (torch.empty(size, dtype=torch.bfloat16) for size in ((1, 64, 9, 11), (32, 64, 3, 3)))
            ops.deform_conv2d(input, torch.empty(1, 18, 9, 11), weight, padding=1)
        found[capability] = launches
    shipped._find.cache_clear()
    assert [each.name for each in found[90]] == ["forward"]
    assert [found[90][0].arguments[name] for name in ("BLOCK_P", "BLOCK_C", "BLOCK_O")] == list(tiles[:3])
    assert [each.name for each in found[80]] == ["columns"]


# Kernels are interpreted in this process, and so are the functions of Triton's own that they call.
COMPILE = """
import json, sys
from pathlib import Path
import torch, triton
from pliant import ops
from pliant.bench.gpu import bundle, launched
from pliant.bench.gpu.compiling import code, compiled, figures, traced
from pliant.bench.gpu.machine_code import telling
from pliant.ops.deform_conv2d.tiles import forced

folder = Path(sys.argv[1])
with traced() as found, forced(forward_by_columns=False):
    input, weight = torch.empty(1, 64, 8, 8, dtype=torch.bfloat16), torch.empty(64, 64, 3, 3, dtype=torch.bfloat16)
    ops.deform_conv2d(input.to(memory_format=torch.channels_last), torch.empty(1, 18, 8, 8), weight, padding=1)
entry, kernel = bundle.entry(found[0], 90)
bundle.pack(folder / "some.zip", [entry, entry])
hits = []
triton.knobs.compilation.listener = lambda cache_hit, **_: hits.append(cache_hit)
triton.knobs.cache.dir = str(folder / "elsewhere")
installed = bundle.install(folder / "some.zip")
found[0].kernel.device_caches.clear()
again = compiled(found[0], 90)
choice = next(launched.choices("bfloat16, channels last, 1, 256", 90))
tried = choice.launches(choice.tiles[:3])
settings = [[each.options["num_warps"], each.options["num_stages"]] for each in tried]
said = {"figures": figures(again), "instructions": telling(code(again)), "installed": installed, "hits": hits}
said["settings"] = settings
said["wanted"] = [[each.warps, each.stages] for each in choice.tiles[:3]]
said["table"] = len(launched.table(90))
print(json.dumps(said | {"files": sorted(again.asm), "same": again.asm["cubin"] == kernel.asm["cubin"]}))
"""


def test_a_kernel_compiled_here_is_found_in_another_cache(tmp_path: Path) -> None:
    pytest.importorskip("triton", minversion="3.4")
    from pliant.bench.gpu import compiling

    if reason := compiling.why_not():
        pytest.skip(reason)
    setting = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILE, str(tmp_path)]
    done = subprocess.run(command, env=setting, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    registers, spilled, shared, threads, turn = said["figures"]
    assert said["hits"] == [True]
    assert said["installed"] == 1
    assert said["same"]
    assert 32 <= registers <= 255
    assert spilled == 0
    assert 0 < shared <= GPUS[90].block_shared
    assert threads in (128, 256, 512)
    assert 100 < turn < 1000
    assert said["settings"] == said["wanted"]
    assert said["table"] > 8
    assert said["instructions"]["STG.E.128"]  # the output is stored 16 bytes at a time: strides are known to be even
    assert "STG.E.U16" not in said["instructions"]
    assert any(name.startswith("HGMMA") for name in said["instructions"])
