"""The GPU's kernels against the reference in float64: on a GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import CONV_CASES, ROIS, AggregateCase, AttentionCase, ConvCase, edge_rois
from hypothesis import given
from hypothesis import strategies as st
from random_calls import LAYOUTS, Call, assert_reference_agrees, convolutions, laid_out, poolings
from torch import Tensor

import pliant
from pliant import ops
from pliant.ops import _gpu, _native
from pliant.ops.deform_conv2d import depthwise
from pliant.ops.deform_conv2d import gpu as convolution
from pliant.ops.deform_conv2d import tiles as launching
from pliant.ops.deform_conv2d.tiles import Tiles
from pliant.ops.roi_pool import gpu as pooling

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of infinities and NaN
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    pytest.skip("the interpreter of Triton before 3.3 does not run on today's NumPy", allow_module_level=True)
SCALE = 1 / 8
# The interpreter takes its time for every program and tap: here maps are as small as cross the borders of tiles.
SMALL = {"channels": 3, "sides": st.integers(1, 6)} if DEVICE == "cpu" else {}
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the sum of magnitudes
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def kernels() -> Iterator[str]:
    """Triton alone, without tf32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with _native.use(_native.TRITON) if DEVICE == "cpu" else nullcontext():
        yield _native.TRITON
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran."""
    names: list[str] = []
    run = _gpu.launch

    def launch(kernel, grid, arguments, **options):  # type: ignore[no-untyped-def]
        names.append(kernel.__name__)
        run(kernel, grid, arguments, **options)  # whose result would run again without a word

    monkeypatch.setattr(_gpu, "launch", launch)
    convolution._described.cache_clear()
    return names


def on_device(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    return {
        name: value.detach().to(DEVICE, torch.float32 if name == "rois" else dtype).requires_grad_(name != "rois")
        for name, value in tensors.items()
    }


def check(call: Callable[..., Tensor], tensors: Tensors, dtype: torch.dtype, layout: str = "contiguous") -> None:
    """Compare values and all gradients with those of the reference, in float64 and on the same rounded tensors."""
    ours = {
        name: laid_out(value.detach(), layout).requires_grad_(value.requires_grad)
        for name, value in on_device(tensors, dtype).items()
    }
    exact = {name: value.detach().cpu().double().requires_grad_(value.requires_grad) for name, value in ours.items()}
    out = call(**ours)
    grad = torch.randn(out.shape, dtype=torch.float64).to(dtype).double()
    with _native.use(_native.REFERENCE):
        expected = call(**exact)
        compared = {"output": expected} | gradients(expected, exact, grad)
    got = {"output": out} | gradients(out, ours, grad)
    assert out.dtype == dtype
    for name, want in compared.items():
        value = got[name].detach().cpu().double()
        assert value.shape == want.shape
        assert torch.equal(value.isnan(), want.isnan()), name
        error = (value - want).nan_to_num().abs().max().item() if want.numel() else 0.0
        size = want.nan_to_num().abs().max().item() if want.numel() else 0.0
        assert error <= 4 * ROUNDING[dtype] * max(size, 1), f"{name}: {error} of {size}"


def gradients(out: Tensor, tensors: Tensors, grad: Tensor) -> Tensors:
    wanted = [name for name, value in tensors.items() if value.requires_grad]
    values = torch.autograd.grad(out, [tensors[name] for name in wanted], grad.to(out))
    return dict(zip(wanted, values, strict=True))


@pytest.mark.parametrize("name", CONV_CASES)
def test_convolution(name: str, launched: list[str]) -> None:
    case = replace(CONV_CASES[name], batch=min(CONV_CASES[name].batch, 2))
    tensors = case.tensors()
    if name == "plain":
        del tensors["mask"], tensors["bias"]
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), tensors, torch.float32)
    if case.batch == 0:
        assert launched == []
    elif name in ("one-cell map", "far offsets"):
        assert launched == ["columns", "list_samples", "list_samples", "gather", "columns"]
    else:
        assert launched == ["forward", "backward_samples", "backward_weight"]


FUSED, BY_COLUMNS = {"forward", "backward_samples", "backward_weight"}, {"columns", "list_samples", "gather"}
DEPTHWISE = {"depthwise_forward", "depthwise_backward", "list_samples", "gather"}
COLUMNS = {"forward_by_columns": True, "backward_by_columns": True}
SMALL_TILES = {name: Tiles(16, 16, 0, 4, 1, 4) for name in ("columns", "columns_backward", "gather")}
DESIGNS = {
    "multiplied as gathered": {"forward_by_columns": False, "backward_by_columns": False},
    "in patches": {
        "forward": Tiles(32, 16, 32, 4, 1, 8, early=True),
        "backward_samples": Tiles(32, 16, 32, 4, 1, 8),
        "backward_weight": Tiles(32, 16, 32, 4, 1, 8),
        "forward_by_columns": False,
        "backward_by_columns": False,
    },
    "by columns": COLUMNS,
    "by columns in patches": COLUMNS | SMALL_TILES,
}


IN_EITHER = {
    "torchvision's": replace(CONV_CASES["torchvision's"], batch=2),
    "far offsets": replace(CONV_CASES["far offsets"], batch=1),
    "high kernel": ConvCase(channels=6, out_channels=4, kernel=(5, 1), size=(9, 3), groups=1, offset_groups=2),
    "depthwise": ConvCase(channels=16, out_channels=16, kernel=(2, 2), size=(5, 4), groups=16, offset_groups=2),
}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", IN_EITHER)
def test_convolution_in_either_design(
    name: str, design: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "CHUNK_BYTES", 1 << 11)  # several chunks, some of them rows of an image
    case = IN_EITHER[name]
    with launching.forced(depthwise=False, **DESIGNS[design]):
        check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32)
    assert set(launched) == (BY_COLUMNS if "columns" in design else FUSED)


def test_forced_tiles_are_those_of_a_call_that_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    case = IN_EITHER["high kernel"]
    tensors = {name: value.detach() for name, value in on_device(case.tensors(), torch.float32).items()}
    seen: list[int] = []
    run = _gpu.launch

    def launch(kernel, grid, arguments, **options):  # type: ignore[no-untyped-def]
        seen.append(arguments["BLOCK_P"])
        run(kernel, grid, arguments, **options)

    monkeypatch.setattr(_gpu, "launch", launch)
    convolution._described.cache_clear()
    ops.deform_conv2d(**tensors, **case.geometry)
    with launching.forced(forward=Tiles(16, 16, 16, 4, 1), forward_by_columns=False):
        ops.deform_conv2d(**tensors, **case.geometry)
    ops.deform_conv2d(**tensors, **case.geometry)
    assert seen[1] == 16
    assert seen[0] == seen[2] != 16


# Offset groups side by side, as many as there are and some of them; channels that leave a tile in part; one channel.
DEPTHWISE_CASES = {
    "packed": ConvCase(channels=16, out_channels=16, kernel=(2, 2), size=(5, 4), groups=16, offset_groups=2),
    "packed, in part": ConvCase(channels=32, out_channels=32, kernel=(1, 2), size=(3, 4), groups=32, offset_groups=8),
    "half a tile": ConvCase(channels=12, out_channels=12, kernel=(2, 1), size=(4, 3), groups=12, offset_groups=1),
    "few channels": ConvCase(channels=6, out_channels=6, kernel=(1, 3), size=(3, 5), groups=6, offset_groups=3),
}


@pytest.mark.parametrize("border", ["paper", "authors"])
@pytest.mark.parametrize("name", DEPTHWISE_CASES)
def test_depthwise_convolution(name: str, border: str, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    case = DEPTHWISE_CASES[name]
    tensors = case.tensors()
    if border == "authors":
        monkeypatch.setattr(launching, "CHUNK_BYTES", 1 << 11)
        del tensors["mask"], tensors["bias"]
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry, border=border), tensors, torch.float32)
    assert set(launched) == DEPTHWISE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_depthwise_convolution_in_half_precision_and_patches(
    dtype: torch.dtype, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gpu, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(depthwise, "_SHARES", 2)  # of the tiles, which are more
    case = replace(DEPTHWISE_CASES["packed"], batch=1)
    small = {name: Tiles(8, 8, 0, 4, 1, 4) for name in ("depthwise_forward", "depthwise_backward", "gather")}
    with launching.forced(**small):
        check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), dtype, "channels last")
    assert set(launched) == DEPTHWISE


def test_convolution_of_packed_offset_groups(launched: list[str]) -> None:
    case = ConvCase(batch=1, channels=16, out_channels=16, size=(4, 5), groups=1, offset_groups=4, kernel=(2, 1))
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32)
    assert set(launched) == BY_COLUMNS


@pytest.mark.parametrize("offset_groups", [1, 2])
def test_convolution_of_very_few_channels_goes_by_columns(offset_groups: int, launched: list[str]) -> None:
    channels = 3 * offset_groups
    case = ConvCase(channels=channels, out_channels=16, size=(4, 5), groups=1, offset_groups=offset_groups)
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32)
    assert set(launched) == BY_COLUMNS


@pytest.mark.parametrize("border", ["paper", "authors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolution_by_columns_in_half_precision(dtype: torch.dtype, border: str) -> None:
    case = ConvCase(batch=1, channels=72, out_channels=70, groups=2, offset_groups=1, size=(4, 5))
    with launching.forced(**COLUMNS):
        check(lambda **values: ops.deform_conv2d(**values, **case.geometry, border=border), case.tensors(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolution_in_half_precision(dtype: torch.dtype) -> None:
    case = ConvCase(batch=1)
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), dtype)


def test_convolution_with_the_authors_border() -> None:
    case = ConvCase(batch=1)
    check(
        lambda **values: ops.deform_conv2d(**values, **case.geometry, border="authors"), case.tensors(), torch.float32
    )


def test_convolution_of_more_channels_than_a_tile() -> None:
    case = ConvCase(batch=1, channels=72, out_channels=70, groups=2, offset_groups=1, size=(4, 5))
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32)


def test_convolution_with_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_INT32_ELEMENTS", 0)
    case = ConvCase(batch=1)
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32)


@pytest.mark.parametrize("far", [(1e6, -1e30, float("inf"), -float("inf")), (float("nan"),)], ids=["far", "nan"])
def test_convolution_of_offsets_that_are_far_or_no_numbers(far: tuple[float, ...]) -> None:
    case = ConvCase(batch=1)
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    for row, value in enumerate(far):
        tensors["offset"][0, 3 + row, row, 4] = value
        tensors["offset"][0, 16 + row, row] = value
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), tensors, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolution_of_any_memory_layout(layout: str) -> None:
    case = ConvCase(size=(5, 6))
    check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32, layout)


@pytest.mark.slow
@given(call=convolutions(tuple(ROUNDING), **SMALL))
def test_random_convolutions(call: Call) -> None:
    assert_reference_agrees(call.to(DEVICE))


@pytest.mark.slow
@given(call=poolings(tuple(ROUNDING), **SMALL))
def test_random_poolings(call: Call) -> None:
    assert_reference_agrees(call.to(DEVICE))


# Two samples a bin and axis; random calls have up to five.
POOLINGS = {
    "roi_pool": lambda input, rois, **how: ops.roi_pool(input, rois, (3, 2), SCALE, sample_per_part=2, **how),
    "ps_roi_pool": lambda input, rois, **how: ops.ps_roi_pool(input, rois, (3, 2), SCALE, **how),
    "deform_roi_pool": lambda input, rois, offset, **how: ops.deform_roi_pool(
        input, rois, offset, (3, 2), SCALE, 0.3, sample_per_part=2, **how
    ),
    "deform_ps_roi_pool": lambda input, rois, offset, **how: ops.deform_ps_roi_pool(
        input, rois, offset, (3, 2), SCALE, 0.3, sample_per_part=2, **how
    ),
}


def to_pool(name: str, parts: tuple[int, int] = (3, 2), classes: int = 2) -> Tensors:
    tensors = {"input": torch.randn(2, 12, 9, 11, dtype=torch.float64), "rois": torch.tensor(ROIS)}
    if name.startswith("deform"):
        tensors["offset"] = torch.randn(len(ROIS), 2 * classes, *parts, dtype=torch.float64)
    return tensors


@pytest.mark.parametrize("sampling", ["paper", "authors"])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling(name: str, sampling: str, launched: list[str]) -> None:
    check(lambda **values: POOLINGS[name](**values, sampling=sampling), to_pool(name), torch.float32)
    assert launched == ["forward", "backward"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampling", ["paper", "authors"])
def test_pooling_in_half_precision(sampling: str, dtype: torch.dtype) -> None:
    tensors = to_pool("deform_roi_pool", parts=(2, 1), classes=1)
    check(lambda **values: POOLINGS["deform_roi_pool"](**values, sampling=sampling), tensors, dtype)


@pytest.mark.parametrize("sampling", ["paper", "authors"])
@pytest.mark.parametrize("far", [1e6, -1e30, float("inf"), float("nan")])
def test_pooling_with_offsets_that_are_far_or_no_numbers(far: float, sampling: str) -> None:
    tensors = to_pool("deform_ps_roi_pool")
    tensors["offset"][0, 0, 1, 1] = tensors["offset"][5, 3, 0] = far
    check(lambda **values: POOLINGS["deform_ps_roi_pool"](**values, sampling=sampling), tensors, torch.float32)


def test_pooling_with_64_bit_indices_and_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_INT32_ELEMENTS", 0)
    check(POOLINGS["deform_roi_pool"], to_pool("deform_roi_pool"), torch.float32, "channels last")


@pytest.mark.parametrize("scale", [1 / 16, 0.3])
def test_pooling_at_the_edges_of_the_map(scale: float) -> None:
    size = (1, 7)
    tensors = {"input": torch.randn(1, 2, *size), "rois": edge_rois(size, scale)[::11]}
    tensors["offset"] = torch.randn(len(tensors["rois"]), 2, 1, 1)
    options = {"output_size": 2, "spatial_scale": scale, "gamma": 0.3}
    assert_reference_agrees(Call(ops.deform_roi_pool, tensors, options).to(DEVICE))


def test_pooling_of_no_rois_and_of_no_images() -> None:
    tensors = to_pool("deform_roi_pool")
    check(
        POOLINGS["deform_roi_pool"], tensors | {name: tensors[name][:0] for name in ("rois", "offset")}, torch.float32
    )
    nothing = torch.zeros(0, 12, 9, 11, device=DEVICE)
    assert ops.roi_pool(nothing, torch.zeros(0, 5, device=DEVICE), 2, SCALE).shape == (0, 12, 2, 2)


def test_pooling_names_wrong_rois() -> None:
    rois = torch.tensor([[0, 0, 0, 8, 8], [2.0, 0, 0, 8, 8]], device=DEVICE)
    with pytest.raises(ValueError, match=r"rois\[1\] = \[2\.0"):
        ops.roi_pool(torch.ones(2, 3, 9, 11, device=DEVICE), rois, 2, SCALE)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_opcheck() -> None:
    case = ConvCase(batch=1, size=(5, 3))
    tensors = on_device(case.tensors(), torch.float32)
    args = *(tensors[name] for name in ("input", "offset", "weight", "bias", "mask")), *case.geometry.values(), "paper"
    tests = "test_schema", "test_faketensor"  # with the strides of the outputs; the rest is not the kernels'
    torch.library.opcheck(torch.ops.pliant.deform_conv2d.default, args, test_utils=tests)
    torch.library.opcheck(
        torch.ops.pliant.deform_conv2d_backward.default,
        (torch.ops.pliant.deform_conv2d(*args), *args[:3], args[4], *args[5:]),
        test_utils=tests,
    )
    pooled = on_device(to_pool("deform_roi_pool"), torch.float32)
    options = (3, 2), (1, 1), SCALE, 0.1, "whole_cells", 4
    torch.library.opcheck(torch.ops.pliant.roi_pool.default, (*pooled.values(), *options), test_utils=tests)


def test_deterministic_algorithms_run_the_backward_without_atomics(launched: list[str]) -> None:
    case = ConvCase(batch=1)
    torch.use_deterministic_algorithms(True)
    try:
        check(lambda **values: ops.deform_conv2d(**values, **case.geometry), case.tensors(), torch.float32)
        check(POOLINGS["deform_roi_pool"], to_pool("deform_roi_pool"), torch.float32)
        assert launched == ["columns", "forward"]
        assert "deterministic" in str(pliant.explain(torch.ones(1, device=DEVICE)))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    case = ConvCase()
    tensors, pooled = on_device(case.tensors(), torch.float32), on_device(to_pool("deform_roi_pool"), torch.float32)

    def step() -> list[Tensor]:
        """With leaves of its own, as those of another stream's graph would warn."""
        leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
        of_pool = {name: value.detach().requires_grad_(name != "rois") for name, value in pooled.items()}
        out = ops.deform_conv2d(**leaves, **case.geometry), POOLINGS["deform_roi_pool"](**of_pool)
        wanted = [*leaves.values(), of_pool["input"], of_pool["offset"]]
        return [*out, *torch.autograd.grad(sum(each.square().sum() for each in out), wanted)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors["input"].mul_(-2)
        pooled["input"].add_(1)
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_float64_is_the_references(launched: list[str]) -> None:
    tensors = {name: value.double().to(DEVICE).requires_grad_() for name, value in to_pool("deform_roi_pool").items()}
    POOLINGS["deform_roi_pool"](**tensors).sum().backward()
    assert not launched
    assert "float64" in str(_gpu.why_not(tensors["input"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kernel", launching.KERNELS)
def test_every_tile_is_a_power_of_two_that_a_matrix_product_takes(
    kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "interpreting", lambda: False)
    for unit, outs in ((1, 3), (24, 40), (64, 64), (512, 1024)):
        problem = launching.Problem(
            dtype, torch.device("cpu"), 2394, outs, 1, unit, 9, far=False, sampled=unit, offset_groups=1
        )
        for tiles in (launching.tiles(kernel, problem), *launching.candidates(kernel, dtype)):
            multiplied = kernel in ("forward", "backward_samples", "backward_weight")
            for side in (tiles.cells, tiles.channels, *([tiles.outs] if multiplied else [])):
                assert side >= (16 if multiplied else 1)
                assert side & (side - 1) == 0
            assert tiles.patch == 0 or tiles.cells % tiles.patch == 0


def attend(case: AttentionCase) -> Callable[..., Tensor]:
    def run(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ops.ms_deform_attn(value, case.shapes, None, locations, weights)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention(dtype: torch.dtype, launched: list[str]) -> None:
    case = AttentionCase(queries=11, channels=19)
    check(attend(case), case.tensors(), dtype)
    assert launched == ["forward", "backward"]


@pytest.mark.parametrize("places", [(1e6, -1e30, float("inf"), -float("inf")), (float("nan"),)], ids=["far", "nan"])
def test_attention_of_locations_that_are_far_or_no_numbers(places: tuple[float, ...]) -> None:
    case = AttentionCase(batch=1, queries=4)
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    for line, place in enumerate(places):
        tensors["locations"][0, line % 4, line % 3, 0, 1, line % 2] = place
    check(attend(case), tensors, torch.float32)


def test_attention_with_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_INT32_ELEMENTS", 0)
    case = AttentionCase(batch=1, heads=1, channels=1)
    check(attend(case), case.tensors(), torch.float32)


def test_attention_at_cells_centres_has_the_references_slopes() -> None:
    case = AttentionCase(batch=1, queries=60, points=1, shapes=((7, 6), (3, 11)))
    tensors = case.tensors(torch.float32)
    cells = torch.randint(0, 9, (1, 60, 3, 2, 1, 2)) + 0.5
    tensors["locations"] = (cells / torch.tensor([[[6, 7]], [[11, 3]]])).requires_grad_()
    ours = {name: value.detach().to(DEVICE).requires_grad_() for name, value in tensors.items()}
    got = torch.autograd.grad(attend(case)(**ours).sum(), list(ours.values()))
    with _native.use(_native.REFERENCE):
        want = torch.autograd.grad(attend(case)(**tensors).sum(), list(tensors.values()))
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left.cpu(), right, rtol=1e-4, atol=1e-4)


def test_attention_gives_nan_where_a_map_does_not_lie_in_the_value() -> None:
    case = AttentionCase(batch=1)
    value, locations, weights = (tensor.detach().to(DEVICE) for tensor in case.tensors(torch.float32).values())
    shapes = torch.tensor(case.shapes, device=DEVICE)
    for start in (-1, 19, 1 << 40):
        starts = torch.tensor([0, 12, start], device=DEVICE)
        assert ops.ms_deform_attn(value, shapes, starts, locations, weights).isnan().all()


def aggregate(case: AggregateCase) -> Callable[..., Tensor]:
    return partial(ops.deform_aggregate, **case.options)


AGGREGATES = {
    "asymmetric": AggregateCase(batch=1, channels=19),
    "without centre": AggregateCase(batch=2, size=(4, 3), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1),
                                    remove_center=True, offset_scale=2.0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregation(name: str, dtype: torch.dtype, launched: list[str]) -> None:
    case = replace(AGGREGATES[name], offset_scale=0.75)  # exact, so that no point falls to another side of a centre
    check(aggregate(case), case.tensors(), dtype)
    assert launched == ["forward", "backward"]


@pytest.mark.parametrize("places", [(1e6, -1e30, float("inf"), -float("inf")), (float("nan"),)], ids=["far", "nan"])
def test_aggregation_of_offsets_that_are_far_or_no_numbers(places: tuple[float, ...]) -> None:
    case = AggregateCase(batch=1, size=(3, 4), channels=2)
    tensors = {name: value.detach() for name, value in case.tensors().items()}
    for line, place in enumerate(places):
        tensors["offset"][0, 0, line, line % 3, 1, line % 2] = place
    check(aggregate(case), tensors, torch.float32)


def test_aggregation_with_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_INT32_ELEMENTS", 0)
    case = AggregateCase(batch=1, size=(2, 3), groups=1, channels=1)
    check(aggregate(case), case.tensors(), torch.float32)


def test_aggregation_at_cells_centres_has_the_references_slopes() -> None:
    case = AggregateCase(
        batch=1, size=(4, 5), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), channels=1
    )
    tensors = case.tensors(torch.float32)
    tensors["offset"] = torch.zeros_like(tensors["offset"]).requires_grad_()
    ours = {name: value.detach().to(DEVICE).requires_grad_() for name, value in tensors.items()}
    for scale in (1.0, 0.7, 0.1):  # the centre stays one at any scale
        call = partial(ops.deform_aggregate, **case.options | {"offset_scale": scale})
        got = torch.autograd.grad(call(**ours).sum(), list(ours.values()))
        with _native.use(_native.REFERENCE):
            want = torch.autograd.grad(call(**tensors).sum(), list(tensors.values()))
        for left, right in zip(got, want, strict=True):
            torch.testing.assert_close(left.cpu(), right, rtol=1e-4, atol=1e-4)


def test_explain_says_what_runs() -> None:
    text = str(pliant.explain(torch.ones(1, 4, 3, 3, device=DEVICE), "deform_conv2d"))
    assert "Triton kernels" in text
    assert "without tf32" in text
    assert "channels last" in text
    for operator in ("ms_deform_attn", "deform_aggregate"):
        assert "channels last" not in str(pliant.explain(torch.ones(1, 4, 3, 3, device=DEVICE), operator))


def test_pooling_rules_are_in_the_order_of_the_kernels() -> None:
    from pliant.ops.roi_pool import kernels as written

    for number, rule in enumerate(pooling._RULES):
        assert getattr(written, rule.upper()).value == number
