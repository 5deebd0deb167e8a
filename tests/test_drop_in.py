from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchvision
from cases import CONV_CASES, ConvCase
from torch import Tensor

import pliant
from pliant import drop_in
from pliant.ops import _native

pytestmark = pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed")


@pytest.fixture(autouse=True)
def _no_patch_is_left() -> Iterator[None]:
    yield
    assert drop_in._patches == 0
    assert drop_in._library is None


def theirs(tensors: dict[str, Tensor], case: ConvCase) -> list[Tensor]:
    out = torchvision.ops.deform_conv2d(**tensors, **case.geometry)
    return [out, *torch.autograd.grad(out.square().sum(), list(tensors.values()))]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the compiled kernels, as they are called."""
    names: list[str] = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            names.append(name)
            return getattr(real, name)

    real = _native.kernels
    monkeypatch.setattr(_native, "kernels", Watched())
    return names


@pytest.mark.parametrize("left_out", [(), ("mask",), ("mask", "bias")])
@pytest.mark.parametrize("name", CONV_CASES)
def test_same_numbers_on_our_kernels(name: str, left_out: tuple[str, ...], calls: list[str]) -> None:
    case = CONV_CASES[name]
    tensors = {key: value for key, value in case.tensors().items() if key not in left_out}
    before = theirs(tensors, case)
    assert not calls
    with pliant.patch_torchvision():
        patched = theirs(tensors, case)
    if case.batch:
        assert calls == ["deform_conv2d", "deform_conv2d_backward"]
    for got, want in zip(patched, before, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    calls.clear()
    theirs(tensors, case)
    assert not calls


def test_without_with_it_lasts_until_undone(calls: list[str]) -> None:
    case = ConvCase()
    outer, inner = pliant.patch_torchvision(), pliant.patch_torchvision()
    outer.undo()
    outer.undo()
    theirs(case.tensors(), case)
    assert calls
    inner.undo()
    calls.clear()
    theirs(case.tensors(), case)
    assert not calls


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torchvision.ops.DeformConv2d(4, 6, 3, padding=1)

    def forward(self, input: Tensor, offset: Tensor) -> Tensor:
        return self.conv(input, offset)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("how", ["eager", "traced", "scripted", "exported", "compiled"])
def test_every_way_to_the_operator_is_served(how: str, calls: list[str]) -> None:
    layer, inputs = Layer().eval(), (torch.randn(2, 4, 7, 5), torch.randn(2, 18, 7, 5))
    expected = layer(*inputs)
    wrapped = {
        "eager": lambda: layer,
        "traced": lambda: torch.jit.trace(layer, inputs),
        "scripted": lambda: torch.jit.script(layer),
        "exported": lambda: torch.export.export(layer, inputs).module(),
        "compiled": lambda: torch.compile(layer, backend="aot_eager", fullgraph=True),
    }[how]()
    with pliant.patch_torchvision():
        torch.testing.assert_close(wrapped(*inputs), expected)
    assert calls == ["deform_conv2d"]


def test_wrong_shapes_are_runtime_errors_as_before() -> None:
    with pliant.patch_torchvision(), pytest.raises(RuntimeError, match="offset"):
        torchvision.ops.deform_conv2d(torch.ones(1, 2, 5, 5), torch.ones(1, 17, 3, 3), torch.ones(2, 2, 3, 3))


def test_it_refuses_to_patch_in_the_reference() -> None:
    with _native.use(_native.REFERENCE), pytest.raises(RuntimeError, match="gain nothing"):
        pliant.patch_torchvision()
