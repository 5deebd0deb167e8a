from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torchvision
from cases import CONV_CASES, ConvCase
from torch import Tensor

import pliant
from pliant import _patch, torchvision_patch
from pliant.ops import _native

pytestmark = pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed")


@pytest.fixture(autouse=True)
def _no_patch_is_left() -> Iterator[None]:
    yield
    assert not _patch.lasts("torchvision::deform_conv2d")
    assert torchvision_patch._library is None


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


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
AUTOCASTS = {
    "none": lambda: contextlib.nullcontext(),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "disabled": lambda: torch.autocast("cpu", enabled=False),
}


def outcome(tensors: dict[str, Tensor], case: ConvCase, autocast: str, nested: bool, grad: bool) -> list[Tensor] | str:
    """Results and gradients; the kind of error where the call is refused."""
    outer = AUTOCASTS["bfloat16" if nested else "none"]()
    with outer, AUTOCASTS[autocast](), torch.set_grad_enabled(grad):
        try:
            out = torchvision.ops.deform_conv2d(**tensors, **case.geometry)
        except RuntimeError:
            return "RuntimeError"
    if not grad:
        return [out]
    return [out, *torch.autograd.grad(out.sum(), list(tensors.values()))]


def same(got: list[Tensor] | str, want: list[Tensor] | str, tolerance: float) -> None:
    if isinstance(got, str) or isinstance(want, str):
        assert got == want
        return
    for ours, theirs in zip(got, want, strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        assert (ours.double() - theirs.double()).norm() <= tolerance * theirs.double().norm()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("autocast", AUTOCASTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_values_and_layouts_are_torchvisions(dtype: torch.dtype, autocast: str, nested: bool) -> None:
    case = ConvCase()
    # torchvision sums float16 in float16, so its own error is large there.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    for layout in (torch.contiguous_format, torch.channels_last):
        for left_out in ((), ("mask", "bias")):
            tensors = {name: value.detach() for name, value in case.tensors(dtype).items() if name not in left_out}
            tensors["input"] = tensors["input"].contiguous(memory_format=layout)
            tensors = {name: value.requires_grad_() for name, value in tensors.items()}
            for grad in (True, False):
                want = outcome(tensors, case, autocast, nested, grad)
                with pliant.patch_torchvision():
                    got = outcome(tensors, case, autocast, nested, grad)
                same(got, want, tolerance)


@pytest.mark.parametrize("autocast", AUTOCASTS)
@pytest.mark.parametrize("other", ["input", "offset", "weight", "bias", "mask"])
def test_mixed_dtypes_are_treated_as_torchvision_treats_them(other: str, autocast: str) -> None:
    case = ConvCase()
    for dtype in (torch.float64, torch.bfloat16):
        tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
        tensors[other] = tensors[other].to(dtype)
        want = outcome(tensors, case, autocast, nested=False, grad=False)
        with pliant.patch_torchvision():
            same(outcome(tensors, case, autocast, nested=False, grad=False), want, 1e-5)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", ["scripted", "compiled"])
def test_scripted_and_compiled_layers_stay_as_they_were_under_autocast(how: str, dtype: torch.dtype) -> None:
    layer = Layer().to(dtype)
    inputs = torch.randn(2, 4, 7, 5, dtype=dtype), torch.randn(2, 18, 7, 5, dtype=dtype)
    wrapped = (
        torch.jit.script(layer) if how == "scripted" else torch.compile(layer, backend="aot_eager", fullgraph=True)
    )

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = wrapped(*inputs)
        return [out, *torch.autograd.grad(out.sin().sum(), list(layer.parameters()))]

    want = run()
    with pliant.patch_torchvision():
        same(run(), want, 1e-5)
