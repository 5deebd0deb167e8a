from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pliant
from pliant._after_import import after_import

BLOCKED = (
    "torchvision",
    "triton",
    "lightning",
    "timm",
    "matplotlib",
    "torchmetrics",
    "PIL",
    "sklearn",
    "typer",
    "rich",
)

SCRIPT = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it now fails
import pliant
assert not any(name == "torch" or name.startswith("pliant.ops") for name in sys.modules), "the package loads nothing"
import torch
loaded = set(sys.modules)
assert not {{"torch._dynamo", "pliant.nn", "pliant.surgery"}} & loaded, "operators are registered alone"
x = torch.load(sys.argv[1])
for load in (torch.jit.load, lambda path: torch.export.load(path).module()):
    path = sys.argv[2 if load is torch.jit.load else 3]
    assert torch.equal(load(path)(x["input"]), x["output"])
assert torch.ops.pliant.batched_nms.default
loaded = set(sys.modules)
layer = pliant.nn.DeformConv2d(3, 4, 3, padding=1)
model = pliant.deform(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), 1)
pliant.param_groups(model, 0.1)
assert layer(torch.ones(1, 3, 5, 5)).shape == (1, 4, 5, 5)
assert set(dir(pliant)) >= {{"deform", "ops", "nn", "__version__"}}
print(sorted(name for name in set(sys.modules) - loaded if "pliant" not in name and sys.modules[name]))
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_torch_alone_is_needed_and_saved_programs_load(tmp_path: Path) -> None:
    layer, x = pliant.nn.DeformConv2d(3, 4, 3, padding=1, modulated=True).eval(), torch.randn(2, 3, 5, 6)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"input": x, "output": layer(x).detach()}, tmp_path / "values.pt")
    torch.jit.save(torch.jit.script(layer), tmp_path / "scripted.pt")
    torch.export.save(torch.export.export(layer, (x,), strict=False), tmp_path / "exported.pt2")
    files = [str(tmp_path / name) for name in ("values.pt", "scripted.pt", "exported.pt2")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_calls_wait_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders, seen = list(sys.meta_path), []
    for factor in (1, 10):
        after_import("late_module", lambda by=factor: seen.append(by * sys.modules["late_module"].value))
    assert seen == []
    import late_module

    try:
        assert seen == [1, 10]
        assert sys.meta_path == finders
        assert inspect.getsource(late_module) == "value = 1\n"
        after_import("late_module", lambda: seen.append(2))
        assert seen == [1, 10, 2]
    finally:
        del sys.modules["late_module"]


def test_unknown_names_are_attribute_errors() -> None:
    assert not hasattr(pliant, "no_such_name")
