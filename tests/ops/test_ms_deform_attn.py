from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import AttentionCase
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn import functional as F

from pliant.ops import _native, ms_deform_attn

CASES = {
    "three maps": AttentionCase(),
    "one head, one point": AttentionCase(heads=1, points=1),
    "one map": AttentionCase(shapes=((4, 9),), queries=40),
    "wide heads": AttentionCase(channels=37, heads=2),
    "many points": AttentionCase(points=101, queries=2, heads=2),
    "far points": AttentionCase(spread=20.0),
    "maps of one cell": AttentionCase(shapes=((1, 1), (1, 6))),
    "no queries": AttentionCase(queries=0),
    "no images": AttentionCase(batch=0),
}


def call(tensors: dict[str, Tensor], case: AttentionCase) -> Tensor:
    return ms_deform_attn(tensors["value"], case.shapes, None, tensors["locations"], tensors["weights"])


def by_grid_sample(tensors: dict[str, Tensor], case: AttentionCase) -> Tensor:
    """The PyTorch implementation that Deformable DETR is released with."""
    value, locations, weights = tensors.values()
    images, _, heads, channels = value.shape
    queries = locations.shape[1]
    maps = value.split([height * width for height, width in case.shapes], dim=1)
    read = []
    for level, (height, width) in enumerate(case.shapes):
        of_level = maps[level].flatten(2).transpose(1, 2).reshape(images * heads, channels, height, width)
        grid = (2 * locations - 1)[:, :, :, level].transpose(1, 2).flatten(0, 1)
        read.append(F.grid_sample(of_level, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    factors = weights.transpose(1, 2).reshape(images * heads, 1, queries, -1)
    out = (torch.stack(read, dim=-2).flatten(-2) * factors).sum(-1).view(images, heads * channels, queries)
    return out.transpose(1, 2)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("no ")])
def test_same_numbers_and_gradients_as_the_released_implementation(name: str) -> None:
    case = CASES[name]
    tensors = case.tensors()
    ours, theirs = call(tensors, case), by_grid_sample(tensors, case)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    above = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, list(tensors.values()), above)
    for got, want in zip(torch.autograd.grad(ours, list(tensors.values()), above), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["no queries", "no images"])
def test_nothing_to_attend(name: str) -> None:
    case = CASES[name]
    tensors = case.tensors()
    out = call(tensors, case)
    assert out.shape == (case.batch, case.queries, case.heads * case.channels)
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), list(tensors.values())), tensors.values(), strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.count_nonzero() == 0


def test_against_the_equation_in_loops() -> None:
    case = AttentionCase(batch=2, queries=2, heads=2, channels=3, points=2)
    value, locations, weights = (tensor.detach() for tensor in case.tensors().values())
    out = torch.zeros(case.batch, case.queries, case.heads, case.channels, dtype=torch.float64)
    for n, q, m, level, p in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        height, width = case.shapes[level]
        start = sum(rows * columns for rows, columns in case.shapes[:level])
        x, y = (locations[n, q, m, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in range(height):
            for column in range(width):
                factor = max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x)) * weights[n, q, m, level, p]
                out[n, q, m] += factor * value[n, start + row * width + column, m]
    torch.testing.assert_close(call(case.tensors(), case), out.flatten(2), rtol=0, atol=1e-12)


def test_maps_lie_where_their_first_rows_are_said_to_be() -> None:
    case = AttentionCase()
    tensors = case.tensors()
    starts = torch.tensor([20, 3, 41])  # of 60 rows: maps in another order, with rows between them
    rows = torch.cat([start + torch.arange(h * w) for start, (h, w) in zip(starts, case.shapes, strict=True)])
    value = torch.full((case.batch, 60, case.heads, case.channels), torch.nan, dtype=torch.float64)
    value[:, rows] = tensors["value"].detach()
    shapes = torch.tensor(case.shapes)
    for kind in (torch.int64, torch.int32):
        out = ms_deform_attn(value, shapes.to(kind), starts.to(kind), tensors["locations"], tensors["weights"])
        assert torch.equal(out, call(tensors, case))


def test_gradcheck() -> None:
    case = AttentionCase(channels=3)
    assert torch.autograd.gradcheck(
        lambda *values: call(dict(zip(case.tensors(), values, strict=True)), case),
        tuple(case.tensors().values()),
        fast_mode=True,
    )


def test_gradients_of_gradients() -> None:
    case = AttentionCase(channels=3)
    assert torch.autograd.gradgradcheck(
        lambda *values: call(dict(zip(case.tensors(), values, strict=True)), case),
        tuple(case.tensors().values()),
        fast_mode=True,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_opcheck() -> None:
    case = AttentionCase()
    value, locations, weights = case.tensors(torch.float32).values()
    shapes = torch.tensor(case.shapes)
    starts = torch.tensor([0, 12, 18])
    torch.library.opcheck(torch.ops.pliant.ms_deform_attn.default, (value, shapes, starts, locations, weights))


def test_the_gradient_at_a_cells_centre_is_the_one_from_the_right() -> None:
    value = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)
    x = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64) / 3
    locations = torch.stack((x, torch.full_like(x, 0.5)), -1).view(1, 3, 1, 1, 1, 2).requires_grad_()
    ms_deform_attn(value, [(1, 3)], None, locations, torch.ones_like(locations[..., 0])).sum().backward()
    assert (locations.grad[..., 0].flatten() / 3).round(decimals=9).tolist() == [4.0, -3.0, -2.0]


@pytest.mark.parametrize("far", [1e6, -1e6, 1e30, float("inf"), -float("inf")])
def test_locations_far_outside_read_zero_and_have_no_gradient(far: float) -> None:
    case = AttentionCase()
    tensors = case.tensors()
    tensors["locations"] = torch.full_like(tensors["locations"], far).requires_grad_()
    out = call(tensors, case)
    assert out.count_nonzero() == 0
    for gradient in torch.autograd.grad(out.sum(), list(tensors.values())):
        assert gradient.count_nonzero() == 0


def test_a_nan_location_shows_in_its_own_head_of_its_own_query_only() -> None:
    case = AttentionCase()
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    tensors["locations"][1, 3, 2, 0, 1, 0] = torch.nan
    bad = call(tensors, case).unflatten(2, (case.heads, -1)).isnan()
    assert bad[1, 3, 2].all()
    assert bad.sum() == case.channels


@pytest.mark.parametrize("channels", [1, 4, 16, 33])
def test_the_same_to_the_bit_on_any_number_of_threads(
    channels: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == _native.REFERENCE:
        pytest.skip("the reference leaves threads to torch")
    case = AttentionCase(channels=channels, queries=75)
    monkeypatch.setattr(_native, "_SMALL", 0)  # else one thread takes small work
    tensors = case.tensors(torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = call(tensors, case)
            results.append((out, *torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("positions", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype, positions: str) -> None:
    case = AttentionCase(channels=19, spread=0.6)
    tensors = {name: value.detach().to(dtype) for name, value in case.tensors().items()}
    if positions == "float32":
        tensors |= {name: tensors[name].float() for name in ("locations", "weights")}
    wide = {name: value.double().requires_grad_() for name, value in tensors.items()}
    narrow = {name: value.requires_grad_() for name, value in tensors.items()}
    exact, out = call(wide, case), call(narrow, case)
    assert out.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    assert (out - exact).norm() < tolerance * exact.norm()
    above = torch.randn_like(out)
    expected = torch.autograd.grad(exact, list(wide.values()), above.double())
    for name, got, want in zip(narrow, torch.autograd.grad(out, list(narrow.values()), above), expected, strict=True):
        assert got.dtype == narrow[name].dtype
        assert (got - want).norm() < tolerance * want.norm(), name


def test_autocast_lowers_values_and_keeps_positions() -> None:
    case = AttentionCase()
    tensors = case.tensors(torch.float32)
    seen = {}

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.pliant.ms_deform_attn.default:
                seen.update(value=args[0].dtype, locations=args[3].dtype, weights=args[4].dtype)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", dtype=torch.bfloat16), Spy():
        out = call(tensors, case)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    assert seen == {"value": torch.bfloat16, "locations": torch.float32, "weights": torch.bfloat16}
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_any_memory_layout(layout: str) -> None:
    case = AttentionCase()
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    changed = {}
    for name, value in tensors.items():
        if layout == "transposed":
            changed[name] = value.mT.contiguous().mT
        elif layout == "expanded":
            tensors[name] = changed[name] = value[:1].expand_as(value)
        else:
            changed[name] = torch.stack((value, value), -1)[..., 0]
    assert torch.equal(call(changed, case), call(tensors, case))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("given", ["pairs", "tensor"])
def test_compiles_without_graph_breaks(given: str) -> None:
    case = AttentionCase()
    tensors = case.tensors()
    shapes = torch.tensor(case.shapes) if given == "tensor" else case.shapes

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, None, locations, weights).sin()

    torch._dynamo.reset()
    out = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors.values())
    torch.testing.assert_close(out, call(tensors, case).sin(), rtol=0, atol=1e-12)
    got = torch.autograd.grad(out.sum(), list(tensors.values()))
    want = torch.autograd.grad(call(tensors, case).sin().sum(), list(tensors.values()))
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_torch_func() -> None:
    case = AttentionCase(queries=2)
    value, locations, weights = (tensor.detach() for tensor in case.tensors().values())

    def loss(locations: Tensor) -> Tensor:
        return call({"value": value, "locations": locations, "weights": weights}, case).sin().sum()

    leaf = locations.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    torch.testing.assert_close(grad(loss)(locations), slope)
    each = vmap(grad(loss))(torch.stack((locations, -locations)))
    torch.testing.assert_close(each[1], grad(loss)(-locations))
    (row,) = torch.autograd.grad(slope.flatten()[7], leaf)
    torch.testing.assert_close(jacrev(grad(loss))(locations).flatten(0, 5)[7], row)


WRONG: dict[str, Callable[[AttentionCase, dict], dict]] = {
    "value must have 4 dimensions": lambda case, t: {"value": t["value"].flatten(2)},
    "attention_weights must have shape": lambda case, t: {"attention_weights": t["attention_weights"][:, :, :1]},
    "sampling_locations must have shape": lambda case, t: {"sampling_locations": t["sampling_locations"][:, :-1]},
    r"spatial_shapes must have shape \[3, 2\]": lambda case, t: {"spatial_shapes": torch.tensor(case.shapes[:2])},
    "spatial_shapes must have 3 pairs": lambda case, t: {"spatial_shapes": case.shapes[:2]},
    r"spatial_shapes\[1\] must be at least 1": lambda case, t: {"spatial_shapes": ((3, 4), (0, 2), (5, 3))},
    r"level_start_index must have shape \[3\]": lambda case, t: {"level_start_index": torch.tensor([0, 12])},
    "level 2 must lie in the 33 rows of value": lambda case, t: {"level_start_index": torch.tensor([0, 12, 19])},
    "level 0 must lie in the 33 rows": lambda case, t: {"level_start_index": torch.tensor([-1, 12, 18])},
    "level 1 must lie in the 33 rows": lambda case, t: {"spatial_shapes": torch.tensor([[3, 4], [-3, -2], [5, 3]])},
    "level 2 must lie in the": lambda case, t: {"spatial_shapes": ((3, 4), (3, 2), (5, 4))},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    case = AttentionCase()
    value, locations, weights = (tensor.detach() for tensor in case.tensors().values())
    given = {
        "value": value,
        "spatial_shapes": torch.tensor(case.shapes),
        "level_start_index": torch.tensor([0, 12, 18]),
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(**given | WRONG[message](case, given))


def test_wrong_types_are_named() -> None:
    case = AttentionCase()
    value, locations, weights = (tensor.detach() for tensor in case.tensors().values())
    with pytest.raises(TypeError, match=r"spatial_shapes must have dtype int64 or int32, got torch\.float32"):
        ms_deform_attn(value, torch.ones(3, 2), None, locations, weights)
    with pytest.raises(TypeError, match=r"sampling_locations has dtype torch\.float32 and value torch\.float64"):
        ms_deform_attn(value, case.shapes, None, locations.float(), weights)
    with pytest.raises(TypeError, match=r"attention_weights has dtype torch\.float32 and value torch\.float64"):
        ms_deform_attn(value, case.shapes, None, locations, weights.float())
