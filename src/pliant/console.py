"""Output to users. Names of files and classes are printed literally, whatever they contain.

This is the only module that uses rich. Text is never interpreted as markup or emoji codes, and control characters are
printed as escapes. Styles are passed separately from the text.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, ProgressColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.table import Table as Table
from rich.text import Text

Item = TypeVar("Item")

_WIDE = 240  # characters per line if the output is not a terminal
_SHORTEST_WAIT, _LONGEST_WAIT = 10.0, 30.0  # seconds between lines of progress
_TICK = 0.5  # seconds between looks at the clock


def printable(text: str) -> str:
    """`text` with escapes for characters that are invisible, control the terminal, or cannot be encoded."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def styled(text: str, style: str) -> Text:
    """`text` in a style such as `"bold red"`, as part of a line or as a cell of a table."""
    return Text(printable(text), style=style)


class Console(rich.console.Console):
    """A console that prints text literally, and tables.

    A string is one line: newlines in it are printed as escapes, like other control characters. To print several lines,
    pass several strings with a newline as `sep`. Characters that the encoding of the output lacks are escaped too.

    Args:
        stderr: print to stderr. The results of a command go to stdout, everything else to stderr.
        quiet: print nothing.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        terminal = hasattr(stream, "isatty") and stream.isatty()
        width = None if terminal or "COLUMNS" in os.environ else _WIDE
        super().__init__(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print strings, results of `styled` and tables, see `rich.console.Console.print`. Lines are not wrapped."""
        text = all(isinstance(each, str | Text) for each in objects)
        super().print(*objects, **{"soft_wrap": text, "crop": not text} | options)

    def error(self, message: str) -> None:
        """Print an error message."""
        self.print(styled("error:", "bold red"), message)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string. rich calls this for every string that it prints, also in tables."""
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
        kept = {name: options[name] for name in ("style", "justify", "overflow") if options.get(name) is not None}
        return Text(shown, **kept)


class Progress:
    """Shows the progress of long tasks on stderr: bars on a terminal, otherwise a line every 10 to 30 seconds.

    Both show the steps that are done and their total, the time taken, and the time that is left if the other steps take
    as long as those since the task began. Without a terminal, a long task also gets a line after its first step, with
    the estimate, and one when it ends.

    Args:
        quiet: show nothing.
        above: function that returns what to show above the bars on a terminal.
        clock: function that returns the time in seconds.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        above: Callable[[], RenderableType] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.clock = clock
        self._above = above
        self._bars = Bars(_Doing(), BarColumn(), _Count(), _Times(), _Note(), console=self.console)
        self._live = Live(
            console=self.console, get_renderable=self._shown, refresh_per_second=4, transient=above is None
        )
        self._tasks: list[Task] = []
        self._start = self._said = clock()
        self._saying = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_at_the_clock, daemon=True)

    @property
    def interactive(self) -> bool:
        """Whether bars are shown."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> Self:
        self._start = self._said = self.clock()
        if not self.console.quiet:
            if self.interactive:
                self._live.start()
            else:
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in reversed(list(self._tasks)):
            task.end()
        self._live.stop()
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def task(self, doing: str, total: int | None = None, done: int = 0) -> Task:
        """Begin a task.

        Args:
            doing: description, such as `"training"`.
            total: number of steps, if known.
            done: number of steps that are already done.
        """
        task = Task(self, self._bars, doing, total, done)
        self._tasks.append(task)
        return task

    def track(self, items: Sequence[Item], doing: str) -> Iterator[Item]:
        """Yield the items one by one, each a step."""
        with self.task(doing, len(items)) as task:
            for item in items:
                yield item
                task.advance()

    def say(self, task: Task | None = None) -> None:
        """Print a line without a terminal: about a task at once, or about the innermost one if a line is due."""
        if self.interactive or self.console.quiet:
            return
        with self._saying:
            now = self.clock()
            wait = min(max(_SHORTEST_WAIT, (now - self._start) / 10), _LONGEST_WAIT)
            if task is None and now - self._said >= wait:
                task = next(reversed(self._tasks), None)
            if task is not None:
                self._said = now
                self.console.print(task.line())

    def forget(self, task: Task) -> None:
        """Remove a task that has ended from the display."""
        if task in self._tasks:
            self._tasks.remove(task)

    def _shown(self) -> Group:
        return Group(*(() if self._above is None else (self._above(),)), self._bars)

    def _look_at_the_clock(self) -> None:
        while not self._ended.wait(_TICK):
            self.say()


class Task:
    """A task that `Progress` shows. As a context manager it ends with the block."""

    def __init__(self, progress: Progress, bars: Bars, doing: str, total: int | None, done: int) -> None:
        self.doing, self.total, self.done, self.note = doing, total, done, ""
        self._progress, self._bars = progress, bars
        self._start, self._first = progress.clock(), done
        self._bar = bars.add_task(doing, total=total, completed=done, note="", times=self.times)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def advance(self) -> None:
        """Report one more step."""
        self.update(self.done + 1)

    def update(self, done: int, note: str | None = None, *, doing: str | None = None) -> None:
        """Report the number of steps done.

        Args:
            done: number of steps.
            note: current information, such as the loss.
            doing: new description, if it has changed.
        """
        begins = self.done == self._first < done
        self.done = done
        self.note = self.note if note is None else note
        self.doing = self.doing if doing is None else doing
        self._bars.update(self._bar, completed=done, description=self.doing, note=self.note)
        if begins and (self.left() or 0) >= _SHORTEST_WAIT:
            self._progress.say(self)

    def end(self) -> None:
        """Report the end of the task."""
        if self.taken() >= _SHORTEST_WAIT and self in self._progress._tasks:
            self._progress.console.print(self.line(ended=True))
        self._progress.forget(self)
        self._bars.update(self._bar, visible=False)

    def taken(self) -> float:
        """The seconds since the beginning."""
        return self._progress.clock() - self._start

    def left(self) -> float | None:
        """The seconds that the other steps will take, if they take as long as those done; None if that is unknown."""
        new = self.done - self._first
        return None if self.total is None or new <= 0 else self.taken() / new * (self.total - self.done)

    def times(self) -> str:
        """The time taken, and about how much is left."""
        left = self.left()
        return _clock(self.taken()) + (f", about {_clock(left)} left" if left else "")

    def line(self, *, ended: bool = False) -> str:
        """The progress as a line of text."""
        count = "" if self.total is None else f" {self.done}/{self.total}"
        times = _clock(self.taken()) if ended else self.times()
        return f"{self.doing}{count}, {times}{f', {self.note}' if self.note else ''}"


class _Doing(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(printable(task.description))


class _Count(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}", justify="right")


class _Times(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(task.fields["times"]())


class _Note(ProgressColumn):
    def render(self, task: Bar) -> Text:
        return Text(printable(task.fields["note"]))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
