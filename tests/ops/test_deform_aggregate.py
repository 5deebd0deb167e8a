from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import AggregateCase
from torch import Tensor
from torch.nn import functional as F

from pliant.ops import deform_aggregate

SAME = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}  # as in DCNv3
CASES = {
    "asymmetric": AggregateCase(),
    "DCNv3's": AggregateCase(**SAME, offset_scale=1.0),
    "without centre": AggregateCase(**SAME, remove_center=True, offset_scale=2.0),
    "dilated": AggregateCase(kernel=(3, 3), stride=(1, 1), padding=(2, 2), dilation=(2, 2), remove_center=True),
    "even kernel": AggregateCase(kernel=(2, 4), padding=(1, 2), dilation=(3, 1), stride=(1, 2)),
    "one group of one channel": AggregateCase(groups=1, channels=1),
    "wide groups": AggregateCase(groups=2, channels=37),
    "many points": AggregateCase(kernel=(11, 11), padding=(5, 5), dilation=(1, 1), size=(3, 2), groups=1),
    "far offsets": AggregateCase(spread=20.0),
    "one cell": AggregateCase(size=(1, 1), padding=(2, 3)),
}


def call(tensors: dict[str, Tensor], case: AggregateCase, **options: Any) -> Tensor:
    return deform_aggregate(**tensors, **case.options | options)


def by_grid_sample(tensors: dict[str, Tensor], case: AggregateCase) -> Tensor:
    """As DCNv3's own function in PyTorch: of a padded input, whose cells are counted from its padding."""
    input, offset, mask = tensors.values()
    (pad_y, pad_x), (kernel_y, kernel_x) = case.padding, case.kernel
    padded = F.pad(input, (0, 0, pad_x, pad_x, pad_y, pad_y))
    images, height, width, channels = padded.shape
    rows, columns = case.out_size
    center_y, center_x = (case.dilation[i] * (case.kernel[i] - 1) // 2 for i in (0, 1))
    cell_y = center_y + 0.5 + case.stride[0] * torch.arange(rows).double()
    cell_x = center_x + 0.5 + case.stride[1] * torch.arange(columns).double()
    cells = torch.stack(torch.meshgrid(cell_x, cell_y, indexing="xy"), -1)  # [Ho, Wo, 2], x before y
    grid_x = case.dilation[1] * torch.arange(kernel_x).double() - center_x
    grid_y = case.dilation[0] * torch.arange(kernel_y).double() - center_y
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="ij"), -1).flatten(0, 1)  # x outside, y inside
    if case.remove_center:
        middle = (kernel_x * kernel_y - 1) // 2
        grid = torch.cat((grid[:middle], grid[middle + 1 :]))
    places = cells[None, :, :, None, None] + (grid + offset) * case.offset_scale  # [N, Ho, Wo, G, P, 2]
    places = 2 * places / torch.tensor([width, height]) - 1
    groups = padded.permute(0, 3, 1, 2).reshape(images * case.groups, case.channels, height, width)
    places = places.permute(0, 3, 1, 2, 4, 5).reshape(images * case.groups, rows * columns, case.points, 2)
    read = F.grid_sample(groups, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    factors = mask.permute(0, 3, 1, 2, 4).reshape(images * case.groups, 1, rows * columns, case.points)
    return (read * factors).sum(-1).view(images, channels, rows, columns).permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", CASES)
def test_same_numbers_and_gradients_as_the_released_function(name: str) -> None:
    case = CASES[name]
    tensors = case.tensors()
    ours, theirs = call(tensors, case), by_grid_sample(tensors, case)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    above = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, list(tensors.values()), above)
    for got, want in zip(torch.autograd.grad(ours, list(tensors.values()), above), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_nothing_to_aggregate() -> None:
    case = AggregateCase(batch=0)
    tensors = case.tensors()
    out = call(tensors, case)
    assert out.shape == (0, *case.out_size, case.groups * case.channels)
    for gradient, tensor in zip(torch.autograd.grad(out.sum(), list(tensors.values())), tensors.values(), strict=True):
        assert gradient.shape == tensor.shape


def test_against_the_equation_in_loops() -> None:
    case = AggregateCase(batch=2, size=(3, 4), groups=2, channels=2, padding=(1, 1), stride=(1, 2), dilation=(1, 1))
    input, offset, mask = (tensor.detach() for tensor in case.tensors().values())
    out = torch.zeros(case.batch, *case.out_size, case.groups, case.channels, dtype=torch.float64)
    by_group = input.unflatten(3, (case.groups, case.channels))
    for n, ho, wo, g, k in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        column, row = divmod(k, case.kernel[0])  # column by column
        dx, dy = offset[n, ho, wo, g, k].tolist()
        y = ho * 1 - 1 + 1 + 0.7 * (row - 1 + dy)  # the kernel of 3 x 2 has its centre at (1, 0)
        x = wo * 2 - 1 + 0 + 0.7 * (column - 0 + dx)
        for at_y in range(case.size[0]):
            for at_x in range(case.size[1]):
                factor = max(0, 1 - abs(at_y - y)) * max(0, 1 - abs(at_x - x)) * mask[n, ho, wo, g, k]
                out[n, ho, wo, g] += factor * by_group[n, at_y, at_x, g]
    torch.testing.assert_close(call(case.tensors(), case), out.flatten(3), rtol=0, atol=1e-12)


def test_without_offsets_a_mask_of_filters_is_a_depthwise_convolution() -> None:
    case = AggregateCase(kernel=(3, 5), padding=(2, 3), dilation=(2, 1), offset_scale=1.0)
    input, offset, _ = (tensor.detach() for tensor in case.tensors().values())
    filters = torch.randn(case.groups, 1, *case.kernel, dtype=torch.float64)
    mask = filters.mT.reshape(case.groups, -1).expand(*offset.shape[:3], -1, -1)  # column by column
    out = deform_aggregate(input, torch.zeros_like(offset), mask, **case.options)
    weight = filters.repeat_interleave(case.channels, 0)
    geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    expected = F.conv2d(input.permute(0, 3, 1, 2), weight, groups=len(weight), **geometry)
    torch.testing.assert_close(out, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-12)


def test_softmax_normalises_the_points_of_a_group() -> None:
    case = AggregateCase()
    tensors = case.tensors()
    normal = tensors | {"mask": tensors["mask"].softmax(-1)}
    assert torch.equal(call(tensors, case, softmax=True), call(normal, case))
    inside = AggregateCase(size=(20, 20), kernel=(1, 1), padding=(0, 0), stride=(1, 1), spread=0.0)
    given = inside.tensors()
    torch.testing.assert_close(call(given, inside, softmax=True), given["input"])  # of one point


@pytest.mark.parametrize("name", ["asymmetric", "without centre"])
def test_gradcheck(name: str) -> None:
    case = CASES[name]
    tensors = case.tensors()
    assert torch.autograd.gradcheck(
        lambda *values: call(dict(zip(tensors, values, strict=True)), case, softmax=True),
        tuple(tensors.values()),
        fast_mode=True,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_opcheck() -> None:
    case = AggregateCase()
    tensors = case.tensors(torch.float32)
    geometry = (case.kernel, case.stride, case.padding, case.dilation, case.offset_scale, False)
    torch.library.opcheck(torch.ops.pliant.deform_aggregate.default, (*tensors.values(), *geometry))


def test_the_gradient_at_a_cells_centre_is_the_one_from_the_right() -> None:
    input = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64).view(1, 1, 3, 1)
    offset = torch.zeros(1, 1, 3, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    deform_aggregate(input, offset, torch.ones_like(offset[..., 0]), 1).sum().backward()
    assert offset.grad is not None
    assert offset.grad[..., 0].flatten().tolist() == [4.0, -3.0, -2.0]


WRONG: dict[str, Callable[[dict], dict]] = {
    "input must have 4 dimensions": lambda t: {"input": t["input"].flatten(2)},
    "offset must have 6 dimensions": lambda t: {"offset": t["offset"].flatten(4)},
    "groups of the mask must divide the 15 channels": lambda t: {"mask": t["mask"][:, :, :, :2]},
    r"mask must have 6 points, for a kernel of \[3, 2\] got": lambda t: {"mask": t["mask"][..., :5]},
    r"mask must have shape \[2, 4, 8, 3, 6\], got \[2, 3, 8, 3, 6\]": lambda t: {"mask": t["mask"][:, 1:]},
    r"offset must have shape \[2, 4, 8, 3, 6, 2\]": lambda t: {"offset": t["offset"][:, :, 1:]},
    "the kernel does not fit": lambda t: {"dilation": 20},
    "kernel_size must be at least 1": lambda t: {"kernel_size": 0},
    "stride must be an int or a pair": lambda t: {"stride": 0.5},
    "offset_scale must be positive and finite, got 0": lambda t: {"offset_scale": 0},
    r"with remove_center, kernel_size must be odd, got \(3, 2\)": lambda t: {"remove_center": True},
    r"mask must have 8 points, for a kernel of \[3, 3\], without its centre, got": lambda t: {
        "kernel_size": 3,
        "remove_center": True,
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    case = AggregateCase()
    tensors = {name: tensor.detach() for name, tensor in case.tensors().items()}
    with pytest.raises(ValueError, match=message):
        deform_aggregate(**tensors | case.options | WRONG[message](tensors))


def test_wrong_types_are_named() -> None:
    case = AggregateCase()
    tensors = {name: tensor.detach() for name, tensor in case.tensors().items()}
    with pytest.raises(TypeError, match="mask must be a Tensor, got NoneType"):
        deform_aggregate(**tensors | case.options | {"mask": None})
    for name in ("offset", "mask"):
        with pytest.raises(TypeError, match=rf"{name} has dtype torch\.float32 and input torch\.float64"):
            deform_aggregate(**tensors | case.options | {name: tensors[name].float()})
