"""What multi-scale deformable attention and deformable aggregation have in common: heads that sum their samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import AggregateCase, AttentionCase
from torch import Tensor
from torch.func import grad, jacrev, vmap

from pliant.ops import _native, deform_aggregate, ms_deform_attn

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator and its geometries: small ones, one with work for several threads, one with exact positions."""

    call: Callable[[Tensors, Any], Tensor]
    overload: Any
    case: Callable[..., Any]
    tiny: dict[str, Any]
    large: dict[str, Any]
    exact: dict[str, Any]
    head: tuple[int, ...]  # of one image, place and head

    def names(self) -> tuple[str, str, str]:
        """The names of values, positions and weights."""
        return tuple(self.case().tensors())  # type: ignore[return-value]


OPERATORS = {
    "ms_deform_attn": Operator(
        lambda t, case: ms_deform_attn(t["value"], case.shapes, None, t["locations"], t["weights"]),
        torch.ops.pliant.ms_deform_attn.default,
        AttentionCase,
        tiny={"channels": 3, "queries": 2},
        large={"queries": 75},
        exact={"channels": 19, "spread": 0.6},
        head=(1, 3, 2),
    ),
    "deform_aggregate": Operator(
        lambda t, case: deform_aggregate(**t, **case.options),
        torch.ops.pliant.deform_aggregate.default,
        AggregateCase,
        tiny={"channels": 2, "size": (2, 3)},
        large={"size": (9, 11)},
        exact={"channels": 19, "offset_scale": 0.75},
        head=(1, 2, 3, 1),
    ),
}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param]


def gradients(out: Tensor, tensors: Tensors, above: Tensor | None = None) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out) if above is None else above)


def detached(tensors: Tensors) -> Tensors:
    return {name: tensor.detach() for name, tensor in tensors.items()}


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_and_gradients_of_gradients(operator: Operator, check: Callable[..., bool]) -> None:
    case = operator.case(**operator.tiny)
    tensors = case.tensors()
    assert check(
        lambda *values: operator.call(dict(zip(tensors, values, strict=True)), case),
        tuple(tensors.values()),
        fast_mode=True,
    )


@pytest.mark.parametrize("far", [1e6, -1e6, 1e30, float("inf"), -float("inf")])
def test_positions_far_outside_read_zero_and_have_no_gradient(operator: Operator, far: float) -> None:
    case = operator.case()
    tensors = case.tensors()
    name = operator.names()[1]
    tensors[name] = torch.full_like(tensors[name], far).requires_grad_()
    out = operator.call(tensors, case)
    assert out.count_nonzero() == 0
    assert all(gradient.count_nonzero() == 0 for gradient in gradients(out, tensors))


def test_a_nan_position_shows_in_its_own_head_of_its_own_place_only(operator: Operator) -> None:
    case = operator.case()
    tensors = detached(case.tensors())
    tensors[operator.names()[1]][operator.head].flatten()[0] = torch.nan
    bad = operator.call(tensors, case).unflatten(-1, (-1, case.channels)).isnan()
    assert bad[operator.head].all()
    assert bad.sum() == case.channels


@pytest.mark.parametrize("channels", [1, 4, 16, 33])
def test_the_same_to_the_bit_on_any_number_of_threads(
    operator: Operator, channels: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == _native.REFERENCE:
        pytest.skip("the reference leaves threads to torch")
    case = operator.case(channels=channels, **operator.large)
    monkeypatch.setattr(_native, "_SMALL", 0)  # else one thread takes small work
    tensors = case.tensors(torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = operator.call(tensors, case)
            results.append((out, *gradients(out, tensors)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("positions", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions(operator: Operator, dtype: torch.dtype, positions: str) -> None:
    case = operator.case(**operator.exact)
    tensors = {name: value.detach().to(dtype) for name, value in case.tensors().items()}
    if positions == "float32":
        tensors |= {name: tensors[name].float() for name in operator.names()[1:]}
    wide = {name: value.double().requires_grad_() for name, value in tensors.items()}
    narrow = {name: value.requires_grad_() for name, value in tensors.items()}
    exact, out = operator.call(wide, case), operator.call(narrow, case)
    assert out.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    assert (out - exact).norm() < tolerance * exact.norm()
    above = torch.randn_like(out)
    expected = gradients(exact, wide, above.double())
    for name, got, want in zip(narrow, gradients(out, narrow, above), expected, strict=True):
        assert got.dtype == narrow[name].dtype
        assert (got - want).norm() < tolerance * want.norm(), name


def test_autocast_lowers_values_and_keeps_positions(operator: Operator) -> None:
    case = operator.case()
    tensors = case.tensors(torch.float32)
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is operator.overload:
                seen.extend(each.dtype for each in args if isinstance(each, Tensor) and each.is_floating_point())
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", dtype=torch.bfloat16), Spy():
        out = operator.call(tensors, case)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_any_memory_layout(operator: Operator, layout: str) -> None:
    case = operator.case()
    tensors, changed = detached(case.tensors()), {}
    for name, value in tensors.items():
        if layout == "transposed":
            changed[name] = value.mT.contiguous().mT
        elif layout == "expanded":
            tensors[name] = changed[name] = value[:1].expand_as(value)
        else:
            changed[name] = torch.stack((value, value), -1)[..., 0]
    assert torch.equal(operator.call(changed, case), operator.call(tensors, case))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(operator: Operator, dynamic: bool) -> None:
    case = operator.case()
    tensors = case.tensors()

    def run(*values: Tensor) -> Tensor:
        return operator.call(dict(zip(operator.names(), values, strict=True)), case).sin()

    torch._dynamo.reset()
    names = operator.names()
    compiled = torch.compile(
        lambda *values: operator.call(dict(zip(names, values, strict=True)), case).sin(),
        fullgraph=True,
        backend="aot_eager",
        dynamic=dynamic,
    )
    out, want = compiled(*tensors.values()), run(*tensors.values())
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    for left, right in zip(gradients(out, tensors), gradients(want, tensors), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_torch_func(operator: Operator) -> None:
    case = operator.case(**operator.tiny)
    tensors = detached(case.tensors())
    name = operator.names()[1]

    def loss(positions: Tensor) -> Tensor:
        return operator.call(tensors | {name: positions}, case).sin().sum()

    leaf = tensors[name].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    torch.testing.assert_close(grad(loss)(tensors[name]), slope)
    each = vmap(grad(loss))(torch.stack((tensors[name], -tensors[name])))
    torch.testing.assert_close(each[1], grad(loss)(-tensors[name]))
    (row,) = torch.autograd.grad(slope.flatten()[7], leaf)
    torch.testing.assert_close(jacrev(grad(loss))(tensors[name]).flatten(0, 5)[7], row)
