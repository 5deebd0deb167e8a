from __future__ import annotations

import pytest
import torch
import torchvision
from cases import CONV_CASES, ConvCase
from torch import Tensor

from pliant.ops import _native, deform_conv2d

NAMES = ("input", "offset", "weight", "bias", "mask")


def call(tensors: dict[str, Tensor], case: ConvCase, **options: str) -> Tensor:
    return deform_conv2d(**tensors, **case.geometry, **options)


def op_args(tensors: dict[str, Tensor], case: ConvCase, border: str = "paper") -> tuple:
    return (
        *(tensors[name] for name in ("input", "offset", "weight")),
        tensors.get("bias"),
        tensors.get("mask"),
        *case.geometry.values(),
        border,
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", CONV_CASES)
def test_same_numbers_and_gradients_as_torchvision(name: str, masked: bool) -> None:
    case = CONV_CASES[name]
    tensors = case.tensors()
    if not masked:
        del tensors["mask"]
    ours, theirs = call(tensors, case), torchvision.ops.deform_conv2d(**tensors, **case.geometry)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    grad = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, list(tensors.values()), grad)
    for got, want in zip(torch.autograd.grad(ours, list(tensors.values()), grad), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def slow_sample(image: Tensor, y: float, x: float, border: str) -> Tensor:
    """Equation 3 (or the authors' first rule) as nested loops over all cells: `[C, H, W]` to `[C]`."""
    height, width = image.shape[1:]
    if border == "authors":
        if not (0 <= y < height and 0 <= x < width):
            return torch.zeros_like(image[:, 0, 0])
        y, x = min(y, height - 1), min(x, width - 1)
    total = torch.zeros_like(image[:, 0, 0])
    for row in range(height):
        for column in range(width):
            total += max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x)) * image[:, row, column]
    return total


@pytest.mark.parametrize("border", ["paper", "authors"])
def test_against_the_equation_in_loops(border: str) -> None:
    case = ConvCase(batch=1, channels=4, out_channels=2, size=(4, 5), groups=2, offset_groups=2, spread=1.5)
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    out = call(tensors, case, border=border)
    expected = tensors["bias"].view(1, -1, 1, 1).expand(out.shape).clone()
    taps = case.kernel[0] * case.kernel[1]
    for ho in range(case.out_size[0]):
        for wo in range(case.out_size[1]):
            for o in range(2):
                for c in range(2):
                    channel = o * 2 + c  # two groups of two input channels and one output channel
                    for k in range(taps):
                        i, j = divmod(k, case.kernel[1])
                        line = (channel // 2) * taps + k
                        dy, dx = tensors["offset"][0, 2 * line : 2 * line + 2, ho, wo].tolist()
                        y = ho * case.stride[0] - case.padding[0] + i * case.dilation[0] + dy
                        x = wo * case.stride[1] - case.padding[1] + j * case.dilation[1] + dx
                        value = slow_sample(tensors["input"][0, channel : channel + 1], y, x, border)[0]
                        weight = tensors["weight"][o, c, i, j] * tensors["mask"][0, line, ho, wo]
                        expected[0, o, ho, wo] += weight * value
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", ["paper", "authors"])
@pytest.mark.parametrize("masked", [True, False])
def test_gradcheck(border: str, masked: bool) -> None:
    case = ConvCase(channels=6, out_channels=4, size=(4, 5))
    tensors = case.tensors()
    if not masked:
        del tensors["mask"]
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: call(dict(zip(names, values, strict=True)), case, border=border), tuple(tensors.values())
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("masked", [True, False])
def test_opcheck(masked: bool) -> None:
    case = ConvCase()
    tensors = case.tensors(torch.float32)
    if not masked:
        del tensors["mask"], tensors["bias"]
    torch.library.opcheck(torch.ops.pliant.deform_conv2d.default, op_args(tensors, case))


def test_the_gradient_at_a_cells_centre_is_the_one_from_the_right() -> None:
    image = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64).view(1, 1, 1, 3)
    offset = torch.zeros(1, 2, 1, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    deform_conv2d(image, offset, weight).sum().backward()
    assert offset.grad[0, 1, 0].tolist() == [4.0, -3.0, -2.0]  # the last one falls to the zero outside


def test_authors_border_repeats_the_last_cell_and_cuts_before_the_first() -> None:
    image = torch.tensor([1.0, 5.0], dtype=torch.float64).view(1, 1, 1, 2)
    offset = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    offset[0, 1, 0] = torch.tensor([-0.25, 0.75])
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert deform_conv2d(image, offset, weight, border="authors").flatten().tolist() == [0.0, 5.0]
    assert deform_conv2d(image, offset, weight).flatten().tolist() == [0.75, 1.25]


def test_borders_agree_at_zero_offsets() -> None:
    case = ConvCase(spread=0.0)
    tensors = case.tensors()
    assert torch.equal(call(tensors, case), call(tensors, case, border="authors"))


@pytest.mark.parametrize("far", [1e6, -1e6, 1e30, float("inf"), -float("inf")])
def test_offsets_far_outside_sample_zero_and_have_no_gradient(far: float) -> None:
    case = ConvCase()
    tensors = case.tensors()
    tensors["offset"] = torch.full_like(tensors["offset"], far).requires_grad_()
    out = call(tensors, case)
    assert torch.equal(out, tensors["bias"].view(1, -1, 1, 1).expand_as(out))
    out.sum().backward()
    assert tensors["offset"].grad.count_nonzero() == 0
    assert tensors["input"].grad.count_nonzero() == 0


def test_a_nan_offset_shows_at_its_own_place_only() -> None:
    case = ConvCase(groups=1, offset_groups=1)
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    tensors["offset"][1, 3, 2, 4] = float("nan")
    bad = call(tensors, case).isnan()
    assert bad[1, :, 2, 4].all()
    assert bad.sum() == case.out_channels


# Channels in and out of a group, groups, offset groups: whole groups to an offset group, and within one group two.
GROUPS = [
    (1, 1, 32, 1),
    (1, 1, 32, 16),
    (1, 1, 150, 1),
    (1, 1, 75, 3),
    (1, 2, 20, 5),
    (2, 1, 9, 3),
    (3, 3, 32, 1),
    (5, 3, 7, 7),
    (8, 8, 4, 2),
    (8, 8, 3, 6),
    (17, 2, 2, 1),
]


def grouped(inputs: int, outputs: int, groups: int, offset_groups: int, size: tuple[int, int]) -> ConvCase:
    """So many channels in and out of a group."""
    return ConvCase(
        channels=inputs * groups, out_channels=outputs * groups, groups=groups, offset_groups=offset_groups, size=size
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "offset_groups"), GROUPS)
def test_groups_of_few_channels_give_what_the_reference_does(
    inputs: int, outputs: int, groups: int, offset_groups: int, dtype: torch.dtype
) -> None:
    case = grouped(inputs, outputs, groups, offset_groups, (5, 7))
    tensors = case.tensors(dtype)
    with torch.no_grad():
        tensors["input"][0, 1, 2, 3] = torch.nan  # shows in its own group and offset group alone
    out = call(tensors, case)
    grad = torch.randn_like(out)
    got = (out, *torch.autograd.grad(out, list(tensors.values()), grad))
    with _native.use(_native.REFERENCE):
        exact = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
        expected = call(exact, case)
        gradients = torch.autograd.grad(expected, list(exact.values()), grad.double())
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3}[dtype]
    for ours, theirs in zip(got, (expected, *gradients), strict=True):
        most = theirs.detach().nan_to_num().abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * most, equal_nan=True)


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "offset_groups"), [(1, 1, 75, 3), (1, 1, 64, 1), (8, 8, 8, 2), (3, 5, 16, 1)]
)
def test_groups_of_few_channels_of_a_map_that_is_taken_in_parts(
    inputs: int, outputs: int, groups: int, offset_groups: int
) -> None:
    """The kernels hold some of the channels at once, which fit in the caches."""
    case = grouped(inputs, outputs, groups, offset_groups, (90, 120))
    tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
    out = call(tensors, case)
    with _native.use(_native.REFERENCE):
        expected = call(tensors, case)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("inputs", "outputs", "groups", "offset_groups"), GROUPS)
def test_groups_of_few_channels_are_the_same_to_the_bit_on_any_number_of_threads(
    inputs: int, outputs: int, groups: int, offset_groups: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == _native.REFERENCE:
        pytest.skip("the reference leaves threads to torch")
    case = grouped(inputs, outputs, groups, offset_groups, (30, 23))
    monkeypatch.setattr(_native, "_SMALL", 0)  # else one thread takes small work
    tensors = case.tensors(torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = call(tensors, case)
            results.append((out, *torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_wide(dtype: torch.dtype) -> None:
    case = ConvCase()
    tensors = {name: value.detach().to(dtype) for name, value in case.tensors(torch.float32).items()}
    wide = {name: value.double().requires_grad_() for name, value in tensors.items()}
    half = {name: value.requires_grad_() for name, value in tensors.items()}
    exact, out = call(wide, case), call(half, case)
    assert out.dtype == dtype
    # One rounding of every factor and of the result: the error is at most so many parts of the sum of magnitudes.
    magnitude = call({name: value.abs() if name != "offset" else value for name, value in wide.items()}, case)
    assert ((out - exact).abs() <= 1.01 * torch.finfo(dtype).eps * magnitude).all()
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(exact, list(wide.values()), grad.double())
    for name, got, want in zip(NAMES, torch.autograd.grad(out, list(half.values()), grad), expected, strict=True):
        assert got.dtype == dtype
        error = (got - want).norm() / want.norm()
        assert error < 2 * torch.finfo(dtype).eps, f"{name}: {error}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("factor", [1.0, 0.8125, -1.0625])
def test_every_half_is_read_exactly_and_rounded_to_nearest(
    dtype: torch.dtype, layout: torch.memory_format, factor: float
) -> None:
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    # Products of bfloat16 pairs take subnormal numbers for zero.
    least = 0 if dtype == torch.float16 else 2.0**-120
    values = torch.where(values.isfinite() & (values.abs().float() >= least), values, 0)
    input = values.view(1, 4, 128, 128).contiguous(memory_format=layout)
    weight = (factor * torch.eye(4, dtype=dtype)).view(4, 4, 1, 1)
    out = deform_conv2d(input, torch.zeros(1, 2, 128, 128, dtype=dtype), weight)
    assert torch.equal(out, (input.float() * factor).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_infinity_nan_and_overflow_of_halves(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    input = torch.tensor([torch.inf, -torch.inf, torch.nan, largest, -largest], dtype=dtype).view(5, 1, 1, 1)
    out = deform_conv2d(input, torch.zeros(5, 2, 1, 1, dtype=dtype), torch.full((1, 1, 1, 1), 2, dtype=dtype))
    want = torch.tensor([torch.inf, -torch.inf, torch.nan, torch.inf, -torch.inf], dtype=dtype)
    torch.testing.assert_close(out.flatten(), want, rtol=0, atol=0, equal_nan=True)


def test_autocast_lowers_values_and_keeps_positions() -> None:
    case = ConvCase()
    tensors = case.tensors(torch.float32)
    seen = {}

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.pliant.deform_conv2d.default:
                seen.update(input=args[0].dtype, offset=args[1].dtype, weight=args[2].dtype)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", dtype=torch.bfloat16), Spy():
        out = call(tensors, case)
    assert seen == {"input": torch.bfloat16, "offset": torch.float32, "weight": torch.bfloat16}
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded"])
def test_any_memory_layout(layout: str) -> None:
    case = ConvCase()
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    changed = {}
    for name, value in tensors.items():
        if layout == "channels_last" and value.dim() == 4:
            changed[name] = value.contiguous(memory_format=torch.channels_last)
        elif layout == "transposed" and value.dim() == 4:
            changed[name] = value.mT.contiguous().mT
        elif layout == "expanded" and name == "input":
            tensors[name] = changed[name] = value[:1].expand_as(value)
        else:
            changed[name] = value
    torch.testing.assert_close(call(changed, case), call(tensors, case), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiles_without_graph_breaks() -> None:
    case = ConvCase()
    tensors = case.tensors()
    compiled = torch.compile(lambda values: call(values, case).sin(), fullgraph=True, backend="aot_eager")
    out = compiled(tensors)
    torch.testing.assert_close(out, call(tensors, case).sin(), rtol=0, atol=1e-12)
    got = torch.autograd.grad(out.sum(), list(tensors.values()))
    want = torch.autograd.grad(call(tensors, case).sin().sum(), list(tensors.values()))
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_scripts_as_torchvisions_function_does() -> None:
    case = ConvCase()
    tensors = case.tensors()
    scripted = torch.jit.script(deform_conv2d)
    torch.testing.assert_close(scripted(**tensors, **case.geometry), call(tensors, case), rtol=0, atol=0)


WRONG = {
    "input must have 3 or 4 dimensions": {"input": torch.zeros(9, 7)},
    "offset must have 3 dimensions": {"input": torch.zeros(12, 9, 7)},
    r"weight.shape\[1\] must divide": {"weight": torch.zeros(8, 5, 3, 2)},
    r"bias must have shape \[8\]": {"bias": torch.zeros(7)},
    r"multiple of 2 \* kh \* kw = 12": {"offset": torch.zeros(2, 2, 4, 6)},
    "5 offset groups": {"offset": torch.zeros(2, 60, 4, 6)},
    "the shape of the offset must be": {"offset": torch.zeros(2, 36, 3, 6)},
    r"mask.shape\[1\] is not valid": {"mask": torch.zeros(2, 2, 4, 6)},
    "mask must have shape": {"mask": torch.zeros(2, 18, 4, 5)},
    "the kernel does not fit": {"input": torch.zeros(2, 12, 1, 1)},
    "stride must be at least 1": {"stride": 0},
    "padding must be at least 0": {"padding": -1},
    "dilation must be at least 1": {"dilation": (1, 0)},
    "stride must be an int or a pair of ints": {"stride": 1.5},
    "border must be one of": {"border": "mirror"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    case = ConvCase()
    tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
    with pytest.raises(ValueError, match=message) as caught:
        deform_conv2d(**{**tensors, **case.geometry, **WRONG[message]})
    assert isinstance(caught.value, RuntimeError), "as torchvision's"


def test_wrong_types_are_named() -> None:
    case = ConvCase()
    tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
    wrong = {
        "input must have dtype": {name: value.int() for name, value in tensors.items()},
        r"offset has dtype torch.float64 and input torch.float32": {**tensors, "offset": tensors["offset"].double()},
        r"mask has dtype torch.float64 and input torch.float32": {**tensors, "mask": tensors["mask"].double()},
        r"weight has dtype torch.float16 and input torch.float32": {**tensors, "weight": tensors["weight"].half()},
        "weight must be a Tensor, got list": {**tensors, "weight": [1.0]},
    }
    for message, values in wrong.items():
        with pytest.raises(TypeError, match=message) as caught:
            call(values, case)
        assert isinstance(caught.value, RuntimeError), "as torchvision's"
    with pytest.raises(ValueError, match="mask is on meta and input on cpu"):
        call({**tensors, "mask": tensors["mask"].to("meta")}, case)


@pytest.mark.parametrize("message", WRONG)
def test_shapes_and_values_are_looked_at_before_dtypes(message: str) -> None:
    case = ConvCase()
    tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**{**tensors, "offset": tensors["offset"].double(), **case.geometry, **WRONG[message]})


def test_autocast_does_not_hide_a_dtype_that_it_leaves() -> None:
    case = ConvCase()
    tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call({**tensors, "input": tensors["input"].bfloat16()}, case).dtype == torch.bfloat16
        with pytest.raises(TypeError, match=r"weight has dtype torch\.float64 and input torch.float32"):
            call({**tensors, "weight": tensors["weight"].double()}, case)


@pytest.mark.parametrize("masked", [True, False])
def test_one_image_without_its_batch_axis(masked: bool) -> None:
    case = ConvCase(batch=1)
    tensors = case.tensors()
    if not masked:
        del tensors["mask"]
    single = {name: value[0] if value.dim() == 4 and name != "weight" else value for name, value in tensors.items()}
    out, want = call(single, case), call(tensors, case)
    assert torch.equal(out, want[0])
    leaves = list(tensors.values())
    for got, expected in zip(
        torch.autograd.grad(out.sin().sum(), leaves), torch.autograd.grad(want.sin().sum(), leaves), strict=True
    ):
        assert torch.equal(got, expected)
    with pytest.raises(ValueError, match=r"offset\.shape\[0\] must be a multiple of 2 \* kh \* kw"):
        call({**single, "offset": single["offset"][1:]}, case)
