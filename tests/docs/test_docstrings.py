"""The parameters that public docstrings name are those of the signature, also where several share a line."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

MODULES = (
    *("ops", "nn", "compat.mmcv", "surgery", "torchvision_patch", "attention_patch", "explanation"),
    *("models", "backbones", "data", "introspect", "export"),
)


def documented() -> Iterator[Any]:
    for name in MODULES:
        module = importlib.import_module(f"pliant.{name}")
        for path, value in vars(module).items():
            if path.startswith("_") or not getattr(value, "__module__", "").startswith("pliant"):
                continue
            members = vars(value).items() if inspect.isclass(value) else ()
            methods = [(f"{path}.{key}", each) for key, each in members if inspect.isfunction(each)]
            for where, each in [(path, value), *methods]:
                if "\nArgs:\n" in inspect.cleandoc(each.__doc__ or ""):
                    yield pytest.param(each, id=f"{name}.{where}")


@pytest.mark.parametrize("value", list(documented()))
def test_parameters_exist(value: Any) -> None:
    section = re.search(r"\nArgs:\n((?:    .*\n?|\n)+)", inspect.cleandoc(value.__doc__))
    assert section is not None
    entries = re.findall(r"^    (\S[^:]*?)(?: \([^)]*\))?:", section[1], re.MULTILINE)
    names = {name.strip().lstrip("*") for entry in entries for name in entry.split(",")}
    assert names
    assert names <= set(inspect.signature(value).parameters)
