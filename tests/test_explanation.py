from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import pliant
from pliant.ops import _native


@pytest.mark.parametrize(
    "name", [name for name in _native.available() if name not in (_native.REFERENCE, _native.TRITON)]
)
def test_names_the_instruction_set(name: str) -> None:
    with _native.use(name):
        found = pliant.explain(torch.ones(1))
    assert "compiled" in found.kernel
    assert name in str(found)


def test_half_types_say_how_they_are_computed() -> None:
    with _native.use(_native.kernels.instruction_sets()[-1] if _native.kernels else _native.REFERENCE):
        text = str(pliant.explain(torch.ones(1, dtype=torch.bfloat16)))
    assert ("computed in float32" in text) == (_native.kernels is not None)


def test_says_why_the_reference_runs() -> None:
    with _native.use(_native.REFERENCE):
        found = pliant.explain(torch.ones(1), "roi_pool")
    assert "reference" in found.kernel
    assert "was asked for" in str(found)
    assert "no meta kernels" in str(pliant.explain(torch.ones(1, device="meta")))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="got list"):
        pliant.explain([1.0])
    with pytest.raises(ValueError, match="'conv2d'"):
        pliant.explain(torch.ones(1), "conv2d")


WITHOUT_COMPILED_KERNELS = """
import sys, warnings
sys.modules["pliant._kernels"] = None
import torch, pliant
warnings.simplefilter("error")
layer = pliant.nn.DeformConv2d(3, 4, 3, padding=1)
layer(torch.ones(1, 3, 5, 5)).sum().backward()
pool = pliant.ops.roi_pool(torch.ones(1, 3, 5, 5), [torch.tensor([[0.0, 0, 4, 4]])], 2)
assert torch.equal(pool, torch.ones(1, 3, 2, 2))
print(pliant.explain(torch.ones(1)))
warnings.simplefilter("always")
for _ in range(2):
    pliant.ops.roi_pool(torch.ones(1, 4, 256, 256), [torch.tensor([[0.0, 0, 4, 4]])], 2)
"""


def test_an_installation_without_compiled_kernels_works_and_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILED_KERNELS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout
    assert "not installed" in done.stdout
    assert done.stderr.count("run on the reference") == 1, done.stderr
