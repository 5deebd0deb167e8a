"""What is shown of the progress of long tasks, by a clock that the test moves."""

from __future__ import annotations

from itertools import pairwise

import pytest

import pliant.console
from pliant.console import Progress, Table


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(pliant.console, "_TICK", 3600.0)  # the thread does not look; the test does
    return Clock()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress(clock=clock) as progress:
        task = progress.task("training", 100)
        for step in range(1, 61):
            clock.now += 2
            task.update(step, f"loss {1 / step:.2f}")
            progress.say()
        assert lines(capsys) == [
            "training 1/100, 0:02, about 3:18 left, loss 1.00",  # the estimate, after the first step
            "training 6/100, 0:12, about 3:08 left, loss 0.17",
            "training 11/100, 0:22, about 2:58 left, loss 0.09",
            "training 16/100, 0:32, about 2:48 left, loss 0.06",
            "training 21/100, 0:42, about 2:38 left, loss 0.05",
            "training 26/100, 0:52, about 2:28 left, loss 0.04",
            "training 31/100, 1:02, about 2:18 left, loss 0.03",
            "training 36/100, 1:12, about 2:08 left, loss 0.03",
            "training 41/100, 1:22, about 1:58 left, loss 0.02",
            "training 46/100, 1:32, about 1:48 left, loss 0.02",
            "training 52/100, 1:44, about 1:36 left, loss 0.02",  # the waits grow to a tenth of the time
            "training 58/100, 1:56, about 1:24 left, loss 0.02",
        ]
    assert lines(capsys) == ["training 60/100, 2:00, loss 0.02"]


def test_no_wait_is_longer_than_half_a_minute(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress(clock=clock) as progress:
        task = progress.task("training", 10**6)
        said = []
        for step in range(1, 4000):
            clock.now += 1
            task.update(step)
            progress.say()
            if lines(capsys):
                said.append(clock.now)
    assert max(later - earlier for earlier, later in pairwise(said)) == 30


def test_a_step_that_takes_minutes_does_not_mean_silence(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress(clock=clock) as progress, progress.task("evaluating", 3) as task:
        for _ in range(60):
            clock.now += 1
            progress.say()
        said = lines(capsys)
        assert said[0] == "evaluating 0/3, 0:10"
        assert len(said) == 6
        clock.now += 1
        task.advance()
        assert lines(capsys) == ["evaluating 1/3, 1:01, about 2:02 left"]


def test_the_innermost_task_is_told_and_resumed_steps_do_not_count(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with Progress(clock=clock) as progress:
        training = progress.task("training", 100, 90)
        with progress.task("reading the data"):
            clock.now += 20
            progress.say()
        training.update(91)
    assert lines(capsys) == [
        "reading the data, 0:20",
        "reading the data, 0:20",  # its end
        "training 91/100, 0:20, about 3:00 left",
        "training 91/100, 0:20",
    ]


def test_what_is_over_soon_says_nothing(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress(clock=clock) as progress:
        for _ in progress.track(range(3), "taking steps"):
            clock.now += 3
            progress.say()
    assert lines(capsys) == []


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Progress(quiet=True, clock=clock) as progress, progress.task("silence", 2) as task:
        clock.now += 100
        progress.say()
        task.advance()
    assert lines(capsys) == []


def test_a_thread_looks_at_the_clock(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pliant.console, "_TICK", 0.001)
    clock = Clock()
    with Progress(clock=clock) as progress, progress.task("thinking"):
        clock.now += 11
        while not (said := lines(capsys)):
            pass
    assert said == ["thinking, 0:11"]


def test_a_terminal_shows_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    with Progress(above=lambda: Table("so far [/x]"), clock=clock) as progress:
        task = progress.task("training", 4, 1)
        clock.now += 70
        task.update(3, "loss [0.5]")
        progress._live.refresh()
    shown = capsys.readouterr().err
    for text in ("so far [/x]", "training", "3/4", "1:10, about 0:35 left", "loss [0.5]"):
        assert text in shown
