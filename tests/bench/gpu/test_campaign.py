"""The campaign's bookkeeping: budget, ledger, worker, and the programs that it starts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pliant.bench import machine
from pliant.bench.gpu import __main__ as command
from pliant.bench.gpu import ledger, outside, programs
from pliant.bench.gpu.report import is_wrong
from pliant.bench.gpu.steps import Absent, Broken, Place, Results, Step, described, work
from pliant.bench.gpu.supervisor import WorkerFailed, supervise

CPU = Place("cpu", tiny=True)


class Clock:
    """Goes on when a step says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float, *results: dict[str, Any]) -> Any:
        def run(place: Place) -> Results:
            self.now += seconds
            yield from results

        return run


def step(name: str, seconds: float, run: Any) -> Step:
    return Step("speed", f"speed {name}", seconds, run)


def told(steps: list[Step], budget: float, clock: Clock, done: set[str] | None = None) -> list[dict[str, Any]]:
    said: list[Any] = []
    work(steps, CPU, budget, said.append, done or set(), clock)
    return said


def test_a_step_starts_only_where_its_estimate_fits() -> None:
    clock = Clock()
    steps = [
        step("long", 60, clock.taking(70, {"x": 1})),
        step("too long", 50, clock.taking(50)),
        step("short", 5, clock.taking(5, {"x": 2}, {"x": 3})),
        step("done", 1, clock.taking(1)),
    ]
    said = told(steps, 100.0, clock, {"speed done"})
    assert [event["begin"] for event in said if "begin" in event] == ["speed long", "speed short"]
    lines = [event["line"] for event in said if "line" in event]
    assert [(line["x"], line.get("last", False)) for line in lines] == [(1, True), (2, False), (3, True)]
    assert lines[0]["took"] == 70
    assert clock.now <= 100


def test_a_step_that_raises_is_a_line_and_the_next_follows() -> None:
    def broken(place: Place) -> Iterator[dict[str, Any]]:
        yield {"x": 1}
        raise RuntimeError("no kernel\nimage")

    def nothing(place: Place) -> Iterator[dict[str, Any]]:
        raise Absent("it is not installed")
        yield {}

    said = told([step("a", 1, broken), step("b", 1, nothing), step("c", 1, Clock().taking(0))], 9, Clock())
    lines = [event["line"] for event in said if "line" in event]
    assert [line["step"] for line in lines] == ["speed a", "speed a", "speed b", "speed c"]
    assert lines[0]["x"] == 1
    assert lines[1]["error"] == "no kernel\nimage"
    assert lines[1]["error_type"] == "RuntimeError"
    assert "in broken" in lines[1]["traceback"]
    assert lines[2]["absent"] == "it is not installed"
    assert "error" not in lines[2]
    assert [line.get("last", False) for line in lines] == [False, True, True, True]


def test_a_device_that_answers_no_more_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: Place) -> Iterator[dict[str, Any]]:
        yield {}
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr("pliant.bench.gpu.steps._answers", lambda place: False)
    said: list[Any] = []
    with pytest.raises(Broken, match="illegal memory access"):
        work([step("a", 1, broken), step("b", 1, broken)], CPU, 9, said.append)
    assert said[-1]["line"]["step"] == "speed a"


def test_the_ledger_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.jsonl"
    assert ledger.read(path) == []
    for number in (1, 2):
        ledger.append(path, {"step": "a", "x": number})
    with path.open("a") as file:
        file.write('{"step": "cut o')
    assert [line["x"] for line in ledger.read(path)] == [1, 2]
    ledger.append(path, {"step": "b", "x": 3})
    assert [line["x"] for line in ledger.read(path)] == [1, 2, 3]
    assert path.read_text().endswith("\n")
    path.write_text('{"step": "a"}\nnonsense\n{"step": "b"}\n')
    with pytest.raises(ValueError, match=r"ledger\.jsonl, line 2, is no JSON"):
        ledger.read(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1, must be an object with a field 'step'"):
        ledger.read(path)


def test_what_is_finished_depends_on_gpu_and_kernels() -> None:
    def line(step: str, **fields: Any) -> dict[str, Any]:
        return {"step": step, "gpu": "A", "kernels": "k", "last": True, "date": "2026-01-02T00:00:00"} | fields

    lines = [line("done"), line("cut", last=False), line("other", gpu="B"), line("old", kernels="j")]
    lines += [line("wrong", error="x"), line("late", error="x", date="2026-01-03T00:00:00"), line("righted", error="x")]
    lines += [line("righted")]
    assert ledger.finished(lines, "A", "k") == {"done", "wrong", "late", "righted"}
    assert ledger.failed(lines, "2026-01-02T12:00:00") == {"wrong"}


def test_numbers_that_json_has_not_are_none() -> None:
    assert ledger.finite({"a": [1.5, float("nan")], "b": {"c": float("inf")}, "d": "x"}) == {
        "a": [1.5, None],
        "b": {"c": None},
        "d": "x",
    }


def test_the_commit_is_given_or_asked_of_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLIANT_COMMIT", "abc")
    assert machine.commit() == "abc"
    monkeypatch.delenv("PLIANT_COMMIT")
    monkeypatch.setattr(machine.pliant, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"
    environment = ["-c", "user.name=a", "-c", "user.email=b"]
    (tmp_path / "file").write_text("x")
    for words in (["init", "-q"], ["add", "file"], [*environment, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert len(machine.commit()) == 10
    (tmp_path / "file").write_text("y")
    assert machine.commit().endswith("+dirty")


def test_the_digest_follows_the_operators_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    kernels = tmp_path / "ops" / "kernels.py"
    kernels.write_text('def run(a):\n    """Run."""\n    return 2 * a\n')
    monkeypatch.setattr(ledger.pliant, "__file__", str(tmp_path / "__init__.py"))
    first = ledger.kernels_digest()
    (tmp_path / "other.py").write_text("b")
    kernels.write_text('def run(a):\n    """Run it."""\n    return 2 * a  # twice\n')
    assert ledger.kernels_digest() == first
    kernels.write_text('def run(a):\n    """Run."""\n    return 3 * a\n')
    assert ledger.kernels_digest() != first
    first = ledger.kernels_digest()
    (tmp_path / "ops" / "tiles.json").write_text("{}")
    assert ledger.kernels_digest() != first


# A worker without torch: each run does the first step that is not in the file of steps begun.
WORKER = """
import argparse, json, os, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("memory"); parser.add_argument("--events", type=int); parser.add_argument("--end", type=float)
given = parser.parse_args()
events = os.fdopen(given.events, "w", buffering=1)
say = lambda event: events.write(json.dumps(event) + "\\n")
begun = open(given.memory).read().split() if os.path.exists(given.memory) else []
say({"about": {"gpu": "A"}})
for name in ("fine", "dies", "hangs", "fails", "last"):
    if name in begun: continue
    open(given.memory, "a").write(name + "\\n")
    say({"begin": f"speed {name}", "limit": 0.5 if name == "hangs" else 30})
    if name == "dies": os.kill(os.getpid(), 11)
    if name == "hangs": time.sleep(60)
    if name == "fails": sys.exit(5)
    say({"line": {"step": f"speed {name}", "x": 1, "last": True}})
"""


def test_a_worker_that_dies_or_hangs_is_followed_by_another(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    lines: list[dict[str, Any]] = []
    supervise([sys.executable, str(script), str(tmp_path / "memory")], time.time() + 60, lines.append)
    assert [line["step"] for line in lines] == [f"speed {name}" for name in ("fine", "dies", "hangs", "fails", "last")]
    assert [line.get("error") for line in lines] == [
        None,
        "the process was killed by SIGSEGV",
        "the process hung: it gave no sign for 0 s",
        "the process ended with status 5",
        None,
    ]
    assert all(line["gpu"] == "A" and line["last"] for line in lines)


def test_a_campaign_ends_with_its_budget(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import time\ntime.sleep(60)\n")
    start = time.time()
    supervise([sys.executable, str(script)], start + 0.2, [].append)
    assert time.time() - start < 30


def test_a_worker_that_cannot_begin_is_not_started_for_ever(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit(4)\n")
    with pytest.raises(WorkerFailed, match="ended with status 4 before it began"):
        supervise([sys.executable, str(script)], time.time() + 60, [].append)


def test_the_command_lists_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    assert command.main(["--list", "--only", "ceilings"]) == 0
    assert "ceilings" in capsys.readouterr().out
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    broken = tmp_path / "ledger.jsonl"
    broken.write_text("x\n")
    for words, said in (
        (["--device", "cpu"], "set TRITON_INTERPRET=1"),
        (["--list", "--only", "int4"], "no step of"),
        (["--list", "--steps", "sped"], "got sped"),
        (["--budget", "-3"], "positive number of seconds"),
        (["--ledger", str(broken)], "line 1, is no JSON"),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_the_reference_is_not_measured_for_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pliant.ops._gpu.why_not", lambda tensor: "there is no triton")
    monkeypatch.setattr("pliant.ops._native.use", lambda name: nullcontext())
    reading, writing = os.pipe()
    words = ["--device", "cpu", "--events", str(writing), "--end", "0", "--ledger", str(tmp_path / "ledger.jsonl")]
    with pytest.raises(SystemExit, match="would run its reference here, not the Triton kernels: there is no triton"):
        command.main(words)
    os.close(reading)


def test_pytests_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="off by 1">trace</failure>'
        '</testcase><testcase name="c"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    assert outside.counted(report) == {
        "passed": 1, "failed": 1, "skipped": 1, "failures": {"b": "off by 1"}, "right": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "status", "right"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, True),
        ("========= ERROR SUMMARY: 2 errors", 7, False),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, True),
        ("Device not supported", 1, False),
        ("========= ERROR SUMMARY: 0 errors", None, False),
    ],
)
def test_a_sanitizers_summary(said: str, status: int | None, right: bool) -> None:
    assert outside.summed_up({"said": said, "status": status})["right"] is right


def test_programs_run_for_a_limited_time() -> None:
    ended = outside.run([sys.executable, "-c", "print('x' * 9000); raise SystemExit(3)"], 30)
    assert ended["status"] == 3
    assert ended["said"].endswith("x\n")
    assert len(ended["said"]) < 2000
    assert outside.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.3)["status"] is None


def test_what_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(outside, "_TOOLKIT", tmp_path)
    (sanitizer, _) = outside.sanitizers()
    with pytest.raises(Absent, match="compute-sanitizer is neither on PATH nor in"):
        list(sanitizer.run(CPU))
    monkeypatch.chdir(tmp_path)
    (tests,) = outside.tests()
    with pytest.raises(Absent, match="run from the folder of the repository"):
        list(tests.run(CPU))


def test_the_losses_of_a_run(tmp_path: Path) -> None:
    assert programs._losses(tmp_path / "train.csv") == []
    (tmp_path / "train.csv").write_text("step,loss,lr\n1,2.5,0.1\n2,nan,0.1\n")
    assert programs._losses(tmp_path / "train.csv")[0] == 2.5


@pytest.mark.slow
@pytest.mark.parametrize("program", ["voc.faster_rcnn_deform, bf16", "voc.deeplab_deform, bf16", "pliant demo"])
def test_whole_programs(program: str) -> None:
    (one,) = (each for each in programs.steps(CPU) if program in each.name)
    (line,) = one.run(CPU)
    assert line["right"], line["said"]
    assert json.dumps(ledger.finite(line))


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--ledger", str(tmp_path / "ledger.jsonl"), "--only", "ceilings|deterministic"]
    for _ in range(2):  # the second finds all done
        done = subprocess.run([sys.executable, "-m", "pliant.bench.gpu", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = ledger.read(tmp_path / "ledger.jsonl")
        assert [line["step"] for line in lines] == ["ceilings", *2 * ["right: deterministic"]]
        assert all(line["versions"]["torch"] and line["commit"] and line["kernels"] for line in lines)


def test_only_what_is_pliants_is_wrong() -> None:
    assert is_wrong({"error": "x"})
    assert is_wrong({"implementation": "Pliant", "right": False})
    assert not is_wrong({"implementation": "torchvision", "right": False})
    assert not is_wrong({"kind": "tuning", "chosen": False, "error": "out of resources"})
    assert is_wrong({"kind": "tuning", "chosen": True, "right": False})
    assert not is_wrong({"absent": "x"})


def test_an_error_names_files_without_their_place_and_a_missing_package_is_absent() -> None:
    with pytest.raises(ModuleNotFoundError) as missing:
        importlib.import_module("a_package_that_nobody_has")
    assert described(missing.value) == {"absent": "a_package_that_nobody_has is not installed"}
    with pytest.raises(ValueError, match="Expecting value") as raised:
        json.loads("wrong")
    found = described(raised.value)
    assert found["error_type"] == "JSONDecodeError"
    assert 'File "gpu/test_campaign.py"' in found["traceback"]
