"""The public names and their arguments, compared with `public_api.txt`: a change must be meant.

Where it is: PLIANT_WRITE_API=1 python -m pytest tests/test_public_api.py writes the file anew; CHANGELOG.md says why.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

SNAPSHOT = Path(__file__).with_name("public_api.txt")
PUBLIC = "ops nn compat.mmcv models backbones data engine runs.folder runs.weights export introspect recipes"
MODULES = ("", *(f".{name}" for name in PUBLIC.split()))


def lines() -> Iterator[str]:
    for suffix in MODULES:
        module = importlib.import_module(f"pliant{suffix}")
        for name in sorted(public_names(module)):
            yield from of_object(f"{module.__name__}.{name}", getattr(module, name))
    from pliant.cli import app
    from pliant.recipes import recipe_names

    command: Any = typer.main.get_command(app)
    for name, each in sorted(command.commands.items()):
        options = (max(option.opts, key=len) for option in each.params)
        yield f"$ pliant {name} {' '.join(sorted(options))}"
    yield from (f"recipe {name}" for name in recipe_names())


def public_names(module: Any) -> list[str]:
    own = getattr(module, "__all__", None)
    if own is not None:
        return list(own)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def of_object(path: str, value: Any) -> Iterator[str]:
    if inspect.ismodule(value) or not getattr(value, "__module__", "").startswith("pliant"):
        yield path
    elif inspect.isclass(value):
        # Users see what a class has of a base in a module that is not public as its own.
        hidden = [base for base in value.__mro__ if base.__module__.startswith("pliant._")]
        members = {name: member for base in (*reversed(hidden), value) for name, member in vars(base).items()}
        own = "__init__" in members or hasattr(value, "__dataclass_fields__")
        yield f"class {path}{inspect.signature(value) if own else ''}"
        for name, member in sorted(members.items()):
            if not name.startswith("_") and inspect.isfunction(member):
                yield f"{path}.{name}{inspect.signature(member)}"
    elif callable(value):
        yield f"{path}{inspect.signature(value)}"
    else:
        yield path


def test_the_public_api_is_what_it_was() -> None:
    found = "".join(f"{line}\n" for line in lines())
    if os.environ.get("PLIANT_WRITE_API"):
        SNAPSHOT.write_text(found)
    assert found.splitlines() == SNAPSHOT.read_text().splitlines()
