"""The application: how commands are registered, and how their errors are shown."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from pliant.console import Console


class _Commands(typer.core.TyperGroup):
    """The commands, whose errors are shown as one line; with --debug, with a traceback."""

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **options: Any) -> Any:
        given = tuple(args)  # parsing empties the list
        context = super().make_context(info_name, args, *others, **options)
        context.obj = given
        return context

    def invoke(self, ctx: Any) -> Any:
        with contextlib.nullcontext() if ctx.params.get("debug") else _user_errors(), _recorded():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Deformable ConvNets for PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command, in whose paths ``~`` is the home folder, where the shell leaves it as well."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(**given: Any) -> None:
            assignments = [text.partition("=") for text in given.get("assignments") or ()]
            if assignments:
                given["assignments"] = [
                    field + equals + os.path.expanduser(text) for field, equals, text in assignments
                ]
            function(**{name: _at_home(value) for name, value in given.items()})

        return app.command(name)(call)

    return register


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Show an error that a user can fix as one line, and leave with 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        Console(stderr=True).error(line)
        raise typer.Exit(2) from error


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """Tell the launcher of several processes why this one fails."""
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from pliant import launch

            launch.record_failure(error)
        raise
