from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import AttentionCase
from torch import Tensor
from torch.nn import functional as F

from pliant.ops import ms_deform_attn

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


def test_maps_may_share_rows() -> None:
    case = AttentionCase()
    tensors = case.tensors()
    starts, shapes = torch.tensor([0, 5, 10]), torch.tensor(case.shapes)
    rows = torch.cat([start + torch.arange(h * w) for start, (h, w) in zip(starts, case.shapes, strict=True)])
    value = torch.randn(
        case.batch, int(rows.max()) + 1, case.heads, case.channels, dtype=torch.float64
    ).requires_grad_()
    sampled = tensors["locations"], tensors["weights"]
    shared = ms_deform_attn(value, shapes, starts, *sampled)
    apart = call({**tensors, "value": value[:, rows]}, case)
    torch.testing.assert_close(shared, apart, rtol=0, atol=1e-12)
    above = torch.randn_like(shared)
    for got, want in zip(
        torch.autograd.grad(shared, (value, *sampled), above),
        torch.autograd.grad(apart, (value, *sampled), above),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


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


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiles_with_the_sizes_of_the_maps_as_a_tensor() -> None:
    case = AttentionCase()
    tensors = case.tensors()
    shapes = torch.tensor(case.shapes)

    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes, None, locations, weights).sin()

    torch._dynamo.reset()
    out = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors.values())
    torch.testing.assert_close(out, call(tensors, case).sin(), rtol=0, atol=1e-12)
    got = torch.autograd.grad(out.sum(), list(tensors.values()))
    want = torch.autograd.grad(call(tensors, case).sin().sum(), list(tensors.values()))
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


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
