"""The campaign's steps, on the CPU in Triton's interpreter, with problems of some cells."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.bench.gpu import calls, ledger, peers, roofline, small, table, training, tuning, warm
from pliant.bench.gpu.clock import Clock
from pliant.bench.gpu.plan import KINDS, plan
from pliant.bench.gpu.problems import DTYPES, ROWS, Problem, problems, shrunk
from pliant.bench.gpu.report import sentence
from pliant.bench.gpu.right import compared
from pliant.bench.gpu.speed import checked
from pliant.bench.gpu.steps import Place, Step, work
from pliant.bench.implementation import InTorch
from pliant.bench.rows import CallRow, ConvRow
from pliant.ops import _native
from pliant.ops.deform_conv2d import tiles as launching

CPU = Place("cpu", tiny=True)
PROGRAMS = "test_triton|training by"  # these start processes
needs_interpreter = pytest.mark.skipif(not _native.interpreting(), reason="rehearsals are for machines without a GPU")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of infinities and NaN


def lines_of(steps: list[Step]) -> list[dict[str, Any]]:
    said: list[Any] = []
    with _native.use(_native.TRITON):
        work(steps, CPU, math.inf, said.append)
    return [json.loads(json.dumps(ledger.finite(event["line"]))) for event in said if "line" in event]


@needs_interpreter
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_runs(kind: str) -> None:
    steps = [step for step in plan(CPU, kinds=[kind]) if not re.search(PROGRAMS, step.name)]
    lines = lines_of(steps)
    assert [line["step"] for line in lines if line.get("last")] == [step.name for step in steps]
    for line in lines:
        assert line.get("right", True), line
        assert "error" not in line, line["error"] + line.get("traceback", "")
        assert line["step"] in sentence(line)
    if kind == "speed":
        timed = [line for line in lines if "device" in line]
        assert {line["key"]["dtype"] for line in timed} == set(DTYPES)
        assert {line["implementation"] for line in timed} == {peers.CUDNN, peers.PLIANT, peers.TORCHVISION}
        assert all(line["device"]["median_ms"] > 0 and line["eager"]["median_ms"] > 0 for line in timed)
    if kind == "tuning":
        entries = table.table([line | {"capability": [9, 0], "kernels": "k"} for line in lines])
        assert {entry["kernel"] for entry in entries} == {*launching.KERNELS, *tuning.DESIGNS.values()}
        for entry in entries:
            assert entry.get("design") in ("columns", "fused") or launching.Tiles(**entry["tiles"])
    if kind == "training":
        assert {line["implementation"] for line in lines if "absent" not in line} == {
            training.PLAIN,
            training.PLIANT,
            training.TORCHVISION,
        }


@needs_interpreter
def test_the_sanitizers_program_runs(capsys: pytest.CaptureFixture) -> None:
    with _native.use(_native.TRITON):
        small.main("cpu")
    assert "operators ran" in capsys.readouterr().out


def test_a_wrong_operator_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls.convolution("one", ConvRow(1, 4, 4, 4, 5), "cpu")
    right = compared(CPU, call, "float32", "contiguous")
    assert right["right"]
    assert right["error64"] < 1e-5
    run = call.operator

    def altered(change: Callable[[Tensor], Tensor]) -> calls.Call:
        def operator(**given: Any) -> Tensor:
            out = run(**given)
            return out if out.dtype == torch.float64 else change(out)

        return dataclasses.replace(call, operator=operator)

    found = compared(CPU, altered(lambda out: out + 1e-3), "float32", "contiguous")
    assert not found["right"]
    assert found["worst"] == "output"
    found = compared(CPU, altered(lambda out: out * math.nan), "float32", "contiguous")
    assert not found["right"]
    assert found["error64"] is None


def test_an_implementation_is_held_against_the_tensors_that_it_is_given() -> None:
    problem = Problem(ConvRow(1, 4, 4, 5, 6), "bfloat16")
    tensors = problem.tensors("cpu")
    assert tensors["offset"].dtype == torch.float32
    assert tensors["input"].is_contiguous(memory_format=torch.channels_last)
    made = peers.pliant(problem, tensors)
    assert checked(problem, made)["right"]
    off = InTorch(
        lambda input, offset, weight: made.function(input, offset + 0.25, weight), tensors, dtype=torch.bfloat16
    )
    off.tolerance = made.tolerance
    assert not checked(problem, off)["right"]
    plain = peers.cudnn(problem, tensors)
    assert checked(problem, plain)["right"]


def test_everyone_takes_a_mask() -> None:
    row = next(row for row in ROWS if isinstance(row, CallRow) and row.masked)
    problem = Problem(shrunk(row), "float32")
    tensors = problem.tensors("cpu")
    assert warm.blank(problem, "cpu").keys() == tensors.keys() == {"input", "offset", "weight", "grad", "mask"}
    made = [maker(problem, tensors) for maker in (peers.cudnn, peers.pliant, peers.torchvision)]
    assert all(checked(problem, each)["right"] for each in made)
    assert ["mask" in each.gradients(each.grad) for each in made] == [False, True, True]


def test_the_first_steps_are_right_and_then_half_precision_near_the_cell() -> None:
    place = Place("cuda")
    steps = plan(place)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert all(name.startswith(step.kind) for step, name in zip(steps, names, strict=True))
    kinds = [step.kind for step in steps]
    assert kinds[0] == "ceilings"
    assert kinds.index("right") < kinds.index("speed")
    first = problems(place)[:8]
    assert {problem.dtype for problem in first} == {"bfloat16"}
    assert {problem.row.batch for problem in first} == {1, 8}
    assert {problem.row.spread for problem in first} == {1.0}
    asked = {(p.row.batch, p.row.spread, p.dtype, p.layout) for p in problems(place)}
    assert len(asked) == 3 * 3 * 4 * 2


def test_steps_are_chosen_by_kind_and_name() -> None:
    chosen = plan(Place("cuda"), kinds=["speed"], only="float16.* 25×42.*spread 4")
    assert chosen
    assert all("float16" in step.name and "25×42" in step.name for step in chosen)
    with pytest.raises(ValueError, match=r"must be of ceilings, right.*, got sped"):
        plan(CPU, kinds=["sped"])
    with pytest.raises(ValueError, match="no step of speed is called like 'int4'"):
        plan(CPU, kinds=["speed"], only="int4")


def test_the_roofline_of_a_convolution() -> None:
    """512 to 512 channels on 64x128 in half precision: 38.7 GFLOP and 8 + 4.5 + 0.6 + 8 MiB."""
    problem = Problem(ConvRow(1, 512, 512, 64, 128, dilation=2), "bfloat16")
    assert problem.operations(training=False) == 2 * 8192 * 512 * 512 * 9
    assert problem.operations(training=True) == 3 * problem.operations(training=False)
    tensors = problem.tensors("cpu")
    moved = sum(tensors[name].nbytes for name in ("input", "offset", "weight", "grad"))
    assert problem.bytes(training=False) == moved
    assert problem.bytes(training=True) == 3 * moved - tensors["grad"].nbytes
    ceilings = roofline.Ceilings(3e12, {"bfloat16": 8e14})
    assert ceilings.floor(problem, "forward") == (problem.operations(training=False) / 8e14, "operations")
    narrow = roofline.Ceilings(1e9, {"bfloat16": 8e14})
    assert narrow.floor(problem, "forward") == (moved / 1e9, "bytes")


def test_the_last_ceilings_of_a_gpu_count() -> None:
    lines = [
        {"step": "ceilings", "gpu": "A", "bandwidth": 1.0, "operations": {}},
        {"step": "ceilings", "gpu": "A", "bandwidth": 2.0, "operations": {}},
        {"step": "ceilings", "gpu": "B", "bandwidth": 3.0, "operations": {}},
    ]
    found = roofline.from_ledger(lines, "A")
    assert found is not None
    assert found.bandwidth == 2.0
    assert roofline.from_ledger(lines, "C") is None


def test_everyone_takes_turns() -> None:
    order: list[str] = []
    clock = Clock(CPU)
    found = clock.device_seconds({name: lambda name=name: order.append(name) for name in "abc"}, 0.1)
    assert order == ["a", "b", "c"]
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found.values())
    assert clock.peak_bytes(lambda: None) is None


def test_kernels_are_compiled_in_groups_of_problems() -> None:
    every = problems(Place("cuda"))[:30]
    groups = warm.Groups(every, each=12)
    assert [at for at, problem in enumerate(every) if groups.first(problem)] == [0, 12, 24]
    blank = warm.blank(every[0], "meta")
    assert blank["input"].shape == (1, 512, 38, 63)
    assert blank["offset"].dtype == torch.float32
    assert blank["input"].is_contiguous(memory_format=torch.channels_last)
