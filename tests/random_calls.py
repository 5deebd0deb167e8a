"""Random calls of the operators, for hypothesis: geometries, dtypes, memory layouts and extreme positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from pliant import ops
from pliant.ops import _native

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
LAYOUTS = ("contiguous", "channels last", "transposed", "strided", "expanded")
EXTREMES = (math.nan, math.inf, -math.inf, 1e30, -1e30, 6e4, 0.0, -0.0)

sizes = st.integers(1, 12)
seeds = st.integers(0, 1 << 20)


@dataclass(frozen=True)
class Call:
    """A call of an operator: its tensors, its other arguments, and how the gradient of its result lies in memory."""

    operator: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    grad_layout: str = "contiguous"

    def __call__(self, **changed: Any) -> Tensor:
        return self.operator(**{**self.tensors, **self.options, **changed})

    def __repr__(self) -> str:  # what hypothesis shows of a failure
        tensors = {name: (list(t.shape), t.stride(), str(t.dtype)) for name, t in self.tensors.items()}
        return f"{self.operator.__name__}({tensors}, {self.options}, grad {self.grad_layout})"

    def with_tensors(self, **changed: Tensor) -> Call:
        return replace(self, tensors={**self.tensors, **changed})

    def results(self) -> dict[str, Tensor]:
        """The output and the gradients to all tensors that have one."""
        leaves = {name: tensor.detach().requires_grad_(name != "rois") for name, tensor in self.tensors.items()}
        out = self(**leaves)
        grad = laid_out(torch.randn(out.shape, generator=generator(1)).to(out), self.grad_layout)
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        grads = torch.autograd.grad(out, list(wanted.values()), grad)
        return {"output": out.detach(), **dict(zip(wanted, grads, strict=True))}

    def to(self, device: str) -> Call:
        """The same call on another device, each tensor with its strides, which `Tensor.to` does not keep."""
        moved = {}
        for name, tensor in self.tensors.items():
            memory = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
            moved[name] = memory.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return replace(self, tensors=moved)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first tensor, and of the result."""
        return next(iter(self.tensors.values())).dtype

    def widened(self) -> Call:
        """The same call with plain contiguous tensors of the dtype that the operators compute in."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return replace(self, tensors={name: t.contiguous().to(wide, copy=True) for name, t in self.tensors.items()})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same tensor in another memory layout; `expanded` repeats its first line along one axis."""
    if layout == "channels last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "strided":
        wide = tensor.new_full([2 * size + 1 for size in tensor.shape], math.nan)
        view = wide[(slice(1, None, 2),) * tensor.dim()]
        return view.copy_(tensor)
    if layout == "expanded" and tensor.numel():
        axis = max(range(tensor.dim()), key=lambda i: tensor.shape[i])
        return tensor.narrow(axis, 0, 1).expand_as(tensor)
    return tensor


def beside(edge: float, generator: torch.Generator, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Numbers that are `edge`, the next one above, and the next one below."""
    step = torch.randint(-1, 2, shape, generator=generator)
    at = torch.full(shape, edge, dtype=dtype)
    return torch.where(step == 0, at, torch.nextafter(at, step.to(dtype) * math.inf))


def tap_positions(size: int, taps: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Where the taps of a convolution read on one axis, `[taps, output size]`."""
    count = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    return torch.arange(count) * stride - padding + (torch.arange(taps) * dilation).unsqueeze(1)


@st.composite
def convolutions(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    kinds: tuple[str, ...] = ("random", "edges", "extreme"),
    layouts: tuple[str, ...] = LAYOUTS,
    channels: int = 8,
    sides: st.SearchStrategy[int] = sizes,
) -> Call:
    """Deformable convolutions. Offsets are random, or also lie on borders and cells' centres, or are also extreme."""
    pair = st.tuples
    kernel, stride = draw(pair(st.integers(1, 3), st.integers(1, 4))), draw(pair(st.integers(1, 3), st.integers(1, 3)))
    padding, dilation = draw(pair(*[st.integers(0, 3)] * 2)), draw(pair(*[st.integers(1, 3)] * 2))
    size = tuple(
        max(draw(sides), dilate * (taps - 1) + 1 - 2 * pad)
        for taps, pad, dilate in zip(kernel, padding, dilation, strict=True)
    )
    groups, offset_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    in_channels = math.lcm(groups, offset_groups) * draw(st.integers(1, channels))
    out_channels, batch = groups * draw(st.integers(1, channels)), draw(st.integers(0, 3))
    dtype, random, kind = draw(st.sampled_from(dtypes)), generator(draw(seeds)), draw(st.sampled_from(kinds))
    place = dtype if dtype.itemsize > 2 else draw(st.sampled_from((dtype, torch.float32)))

    rows, columns = (
        tap_positions(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)
    )  # [kh, Ho], [kw, Wo]
    regular = torch.stack(torch.broadcast_tensors(rows[:, None, :, None], columns[None, :, None, :]), dim=2)
    regular = regular.flatten(0, 1).double()  # [taps, 2, Ho, Wo]
    offset = 2 * torch.randn(batch, offset_groups, *regular.shape, generator=random, dtype=torch.float64)
    if kind != "random":
        chance = torch.rand(offset.shape, generator=random)
        for axis in (0, 1):
            edges = (-1, -0.5, 0, size[axis] - 1, size[axis] - 0.5, size[axis])
            edge = edges[draw(st.integers(0, len(edges) - 1))]
            target = beside(edge, random, offset[:, :, :, axis].shape, torch.float32).double()
            offset[:, :, :, axis] = torch.where(
                chance[:, :, :, axis] < 0.3, target - regular[:, axis], offset[:, :, :, axis]
            )
        if kind == "extreme":
            offset = torch.where(chance > 0.9, draw(st.sampled_from(EXTREMES)), offset)
    out_size = regular.shape[2:]
    taps = kernel[0] * kernel[1]
    tensors = {
        "input": torch.randn(batch, in_channels, *size, generator=random, dtype=torch.float64).to(dtype),
        "offset": offset.flatten(1, 3).to(place),
        "weight": torch.randn(out_channels, in_channels // groups, *kernel, generator=random).to(dtype),
    }
    if draw(st.booleans()):
        tensors["bias"] = torch.randn(out_channels, generator=random).to(dtype)
    if draw(st.booleans()):
        tensors["mask"] = torch.randn(batch, offset_groups * taps, *out_size, generator=random).to(place)
    border = draw(st.sampled_from(("paper", "authors")))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "border": border}
    return _in_layouts(draw, Call(ops.deform_conv2d, tensors, options), layouts)


def _in_layouts(draw: st.DrawFn, call: Call, layouts: tuple[str, ...]) -> Call:
    tensors = {name: laid_out(tensor, draw(st.sampled_from(layouts))) for name, tensor in call.tensors.items()}
    return replace(call, tensors=tensors, grad_layout=draw(st.sampled_from(layouts)))


def roi_lines(draw: st.DrawFn, images: int, random: torch.Generator, far: bool) -> Tensor:
    """RoIs of pixels and half pixels: inside, across borders, beside halves, turned round, and, if `far`, huge."""
    count = draw(st.integers(0, 6)) if images else 0
    corners = torch.randint(-40, 200, (count, 4), generator=random).double() / 2
    kinds = torch.randint(0, 6, (count,), generator=random)
    halves = beside(4.5, random, corners.shape, torch.float32).double()
    corners = torch.where((kinds == 0).unsqueeze(1), halves, corners)
    ordered = torch.cat((corners.view(-1, 2, 2).amin(1), corners.view(-1, 2, 2).amax(1)), dim=1)
    corners = torch.where((kinds > 1).unsqueeze(1), ordered, corners)
    if far:
        huge = torch.tensor([-3e38, -1e9, 1e9, 3e38]).double()
        corners = torch.where((kinds == 1).unsqueeze(1), huge, corners)
    image = torch.randint(0, max(images, 1), (count, 1), generator=random).double()
    return torch.cat((image, corners), dim=1)


@st.composite
def poolings(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    layouts: tuple[str, ...] = LAYOUTS,
    channels: int = 4,
    sides: st.SearchStrategy[int] = sizes,
    extremes: tuple[float, ...] = EXTREMES,
    names: tuple[str, ...] = ("roi_pool", "deform_roi_pool", "ps_roi_pool", "deform_ps_roi_pool"),
) -> Call:
    """RoI poolings.

    Half of them are of numbers that no rounding touches, with offsets on every kind of border. The others are of any
    numbers; samples (`sampling="authors"`) then come in float64 and with random offsets, for a sample within rounding
    of the place where the operator jumps may fall on either side of it.
    """
    name, sampling = draw(st.sampled_from(names)), draw(st.sampled_from(("paper", "authors")))
    dtype, random = draw(st.sampled_from(dtypes)), generator(draw(seeds))
    deformable = name.startswith("deform") and draw(st.integers(0, 4)) > 0
    samples = sampling == "authors" and name != "ps_roi_pool"
    exact = draw(st.booleans()) or (samples and not (deformable and dtype == torch.float64))
    side = st.sampled_from((1, 2, 4)) if exact else st.integers(1, 5)
    output, small = draw(st.tuples(side, side)), st.integers(1, 3)
    options: dict[str, Any] = {
        "output_size": output,
        "spatial_scale": draw(st.sampled_from((1.0, 0.5, 0.125) if exact else (0.3, 1 / 7, 0.0625))),
        "sampling": sampling,
    }
    groups = 1
    if "ps_" in name:
        group = options["group_size"] = draw(st.one_of(st.none(), st.tuples(small, small)))
        groups = math.prod(output if group is None else group)
    if name != "ps_roi_pool":
        options["sample_per_part"] = draw(side)
    classes, images = draw(small) if deformable else 1, draw(st.integers(0, 3))
    rois = roi_lines(draw, images, random, far=exact and dtype.itemsize > 2)
    outs = classes * draw(st.integers(1, channels))
    tensors = {
        "input": torch.randn(images, outs * groups, draw(sides), draw(sides), generator=random).to(dtype),
        "rois": rois.to(dtype if dtype.itemsize > 2 else draw(st.sampled_from((dtype, torch.float32)))),
    }
    if name.startswith("deform"):
        options["gamma"] = draw(st.sampled_from((0.0, 0.25, -0.5, 1.0) if exact else (0.1, -0.3, 1.7)))
        options["offset"] = None
    if deformable:
        offset = torch.randn(len(rois), 2 * classes, draw(small), draw(small), generator=random, dtype=torch.float64)
        if exact:
            chance = torch.rand(offset.shape, generator=random)
            offset = (16 * offset).round() / 16
            offset = torch.where(chance < 0.2, draw(st.sampled_from(extremes)), offset)
        options["gamma"] = options["gamma"] or 0.5
        del options["offset"]
        tensors["offset"] = offset.to(tensors["rois"].dtype)
    return _in_layouts(draw, Call(getattr(ops, name), tensors, options), layouts)


def _placed(
    draw: st.DrawFn, random: torch.Generator, positions: Tensor, sides: Tensor, kinds: tuple[str, ...]
) -> Tensor:
    """Positions `[..., 2]` in cells of maps of `sides`, by kind: some on borders and centres, or also extreme."""
    kind = draw(st.sampled_from(kinds))
    chance = torch.rand(positions.shape, generator=random)
    if kind != "random":
        edge = draw(st.sampled_from((-1.0, -0.5, 0.0, 1.0)))
        edges = torch.where(torch.rand(positions.shape, generator=random) < 0.5, torch.tensor(edge), sides - 1 - edge)
        positions = torch.where(chance < 0.3, edges.double(), positions)
    if kind == "extreme":
        positions = torch.where(chance > 0.9, draw(st.sampled_from(EXTREMES)), positions)
    return positions


@st.composite
def attentions(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    kinds: tuple[str, ...] = ("random", "edges", "extreme"),
    layouts: tuple[str, ...] = LAYOUTS,
    channels: int = 8,
    sides: st.SearchStrategy[int] = sizes,
) -> Call:
    """Multi-scale deformable attention on one to three maps, which lie end to end."""
    small = st.integers(1, 3)
    shapes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))
    batch, queries, heads, points = draw(st.integers(0, 3)), draw(st.integers(0, 6)), draw(small), draw(small)
    dtype, random = draw(st.sampled_from(dtypes)), generator(draw(seeds))
    place = dtype if dtype.itemsize > 2 else draw(st.sampled_from((dtype, torch.float32)))
    rows = sum(height * width for height, width in shapes)
    lengths = torch.tensor(shapes).flip(1).unsqueeze(1)  # [L, 1, 2] width before height
    where = (batch, queries, heads, len(shapes), points)
    cells = lengths / 2 + (lengths / 2 + 1) * torch.randn(*where, 2, generator=random, dtype=torch.float64)
    locations = (_placed(draw, random, cells, lengths, kinds) + 0.5) / lengths
    tensors = {
        "value": torch.randn(batch, rows, heads, draw(st.integers(1, channels)), generator=random).to(dtype),
        "sampling_locations": locations.to(place),
        "attention_weights": torch.randn(where, generator=random).to(place),
    }
    options = {"spatial_shapes": shapes, "level_start_index": None}
    return _in_layouts(draw, Call(ops.ms_deform_attn, tensors, options), layouts)


@st.composite
def aggregations(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    kinds: tuple[str, ...] = ("random", "edges", "extreme"),
    layouts: tuple[str, ...] = LAYOUTS,
    channels: int = 8,
    sides: st.SearchStrategy[int] = sizes,
) -> Call:
    """Deformable aggregations of one to three groups; kernels with odd sides may lack their centre."""
    small, pair = st.integers(1, 3), st.tuples
    kernel, stride = draw(pair(small, st.integers(1, 4))), draw(pair(small, small))
    padding, dilation = draw(pair(*[st.integers(0, 3)] * 2)), draw(pair(small, small))
    size = tuple(
        max(draw(sides), dilate * (taps - 1) + 1 - 2 * pad)
        for taps, pad, dilate in zip(kernel, padding, dilation, strict=True)
    )
    remove = kernel[0] % 2 == kernel[1] % 2 == 1 and math.prod(kernel) > 1 and draw(st.booleans())
    groups, batch = draw(small), draw(st.integers(0, 3))
    dtype, random = draw(st.sampled_from(dtypes)), generator(draw(seeds))
    place = dtype if dtype.itemsize > 2 else draw(st.sampled_from((dtype, torch.float32)))
    out_size = [
        tap_positions(size[i], kernel[i], stride[i], padding[i], dilation[i]).shape[1] for i in (0, 1)
    ]  # Ho, Wo
    where = (batch, *out_size, groups, math.prod(kernel) - remove)
    offset = 2 * torch.randn(*where, 2, generator=random, dtype=torch.float64)
    offset = _placed(draw, random, offset, torch.tensor([size[1], size[0]]), kinds)
    tensors = {
        "input": torch.randn(batch, *size, groups * draw(st.integers(1, channels)), generator=random).to(dtype),
        "offset": offset.to(place),
        "mask": torch.randn(where, generator=random).to(place),
    }
    options = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "offset_scale": draw(st.sampled_from((1.0, 0.5, 0.7))),
        "remove_center": remove,
    }
    return _in_layouts(draw, Call(ops.deform_aggregate, tensors, options), layouts)


def assert_same(call: Call, got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float | None = None) -> None:
    """Compare results, NaN by NaN, with what rounding allows beside the largest number of each."""
    for name, expected in want.items():
        value = got[name]
        assert value.shape == expected.shape, name
        assert value.dtype == (call.dtype if name == "output" else call.tensors[name].dtype), name
        value, expected = value.double(), expected.double()
        assert torch.equal(value.isnan(), expected.isnan()), f"{name}: NaN elsewhere"
        if not expected.numel():
            continue
        error = (value - expected).nan_to_num(0.0).abs().max().item()
        size = expected.nan_to_num(0.0).abs().max().item()
        allowed = TOLERANCE[call.dtype] if tolerance is None else tolerance
        assert error <= allowed * max(size, 1), f"{name}: {error} of {size}"


def assert_reference_agrees(call: Call) -> None:
    """Outputs and gradients of the kernels in use are the reference's, and no tensor was written to."""
    before = {name: tensor.clone() for name, tensor in call.tensors.items()}
    got = call.results()
    for name, tensor in call.tensors.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    with _native.use(_native.REFERENCE):
        want = replace(call.widened(), grad_layout=call.grad_layout).results()
    assert_same(call, got, want)
