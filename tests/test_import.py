from __future__ import annotations

import subprocess
import sys

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
import torch
loaded = set(sys.modules)
import pliant
assert not any(name.startswith("pliant.") for name in sys.modules), "the package itself loads nothing"
layer = pliant.nn.DeformConv2d(3, 4, 3, padding=1)
model = pliant.deform(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), 1)
pliant.param_groups(model, 0.1)
assert layer(torch.ones(1, 3, 5, 5)).shape == (1, 4, 5, 5)
assert set(dir(pliant)) >= {{"deform", "ops", "nn", "__version__"}}
print(sorted(name for name in set(sys.modules) - loaded if "pliant" not in name and sys.modules[name]))
"""


def test_torch_alone_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors() -> None:
    import pliant

    assert not hasattr(pliant, "no_such_name")
