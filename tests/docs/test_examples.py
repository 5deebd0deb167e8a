"""Every public function and class has an example in its docstring, and the examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pliant

MODULES = (
    "ops",
    "nn",
    "compat.mmcv",
    "surgery",
    "torchvision_patch",
    "attention_patch",
    "explanation",
    "introspect",
    "export",
    "models",
)
MAY_LACK = ("backbones", "data")
RECORDS = (tuple, pliant.explain(torch.zeros(1)).__class__)  # what functions return: shown in the functions' examples
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> Iterator[Any]:
    for name in (*MODULES, *MAY_LACK):
        module = importlib.import_module(f"pliant.{name}")
        for key in getattr(module, "__all__", vars(module)):
            value = getattr(module, key)
            own = getattr(value, "__module__", "").startswith(module.__name__)
            if key.startswith("_") or not own or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            needed = name not in MAY_LACK or "Examples:" in (value.__doc__ or "")
            if needed and not (inspect.isclass(value) and issubclass(value, RECORDS)):
                yield pytest.param(value, id=f"{name}.{key}")


@pytest.mark.parametrize("value", list(public()))
def test_example(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if value.__module__.startswith("pliant.export"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    assert "\nExamples:\n    >>> " in inspect.cleandoc(value.__doc__)
    monkeypatch.chdir(tmp_path)  # for examples that write files
    torch.manual_seed(0)
    example = doctest.DocTestParser().get_doctest(
        inspect.cleandoc(value.__doc__), {"torch": torch, "pliant": pliant}, value.__name__, None, 0
    )
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=report.append)
    assert not report, "".join(report)
