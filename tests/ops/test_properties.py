"""What must hold for every call, on random calls; `--hypothesis-profile=thorough` tries many more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from random_calls import (
    LAYOUTS,
    Call,
    aggregations,
    assert_reference_agrees,
    assert_same,
    attentions,
    convolutions,
    generator,
    poolings,
    seeds,
)
from torch import Tensor

from pliant import ops
from pliant.ops import _native

DOUBLE = (torch.float64,)
calls = st.one_of(convolutions(), poolings(), attentions(), aggregations())
plain_calls = st.one_of(
    convolutions(DOUBLE, ("random",), LAYOUTS[:4]),
    poolings(DOUBLE, LAYOUTS[:4], extremes=(1e30, -0.0)),
    attentions(DOUBLE, ("random",), LAYOUTS[:4]),
    aggregations(DOUBLE, ("random",), LAYOUTS[:4]),
)  # in numbers that sums keep
LINEAR = ("input", "weight", "mask", "value", "attention_weights")
BY_IMAGE = ("input", "offset", "mask", "value", "sampling_locations", "attention_weights")


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, equal_nan=True)


def like(tensor: Tensor, seed: int) -> Tensor:
    return torch.randn(tensor.shape, generator=generator(seed), dtype=torch.float64).to(tensor.dtype)


@given(call=convolutions())
def test_convolutions_are_the_references(call: Call) -> None:
    assert_reference_agrees(call)


@given(call=convolutions(channels=40, kinds=("random",)))
def test_convolutions_of_many_channels_are_the_references(call: Call) -> None:
    assert_reference_agrees(call)


@given(call=poolings())
def test_poolings_are_the_references(call: Call) -> None:
    assert_reference_agrees(call)


@given(call=st.one_of(attentions(), attentions(channels=40)))
def test_attentions_are_the_references(call: Call) -> None:
    assert_reference_agrees(call)


@given(call=st.one_of(aggregations(), aggregations(channels=40)))
def test_aggregations_are_the_references(call: Call) -> None:
    assert_reference_agrees(call)


@given(call=aggregations(DOUBLE, ("random",)))
def test_an_aggregation_is_attention_to_one_map(call: Call) -> None:
    input, offset, mask = call.tensors.values()
    (kernel_y, kernel_x), scale = call.options["kernel_size"], call.options["offset_scale"]
    (stride_y, stride_x), (pad_y, pad_x), (dilate_y, dilate_x) = (
        call.options[name] for name in ("stride", "padding", "dilation")
    )
    centre_y, centre_x = dilate_y * (kernel_y - 1) // 2, dilate_x * (kernel_x - 1) // 2
    x, y = torch.meshgrid(dilate_x * torch.arange(kernel_x), dilate_y * torch.arange(kernel_y), indexing="ij")
    taps = torch.stack((x - centre_x, y - centre_y), -1).flatten(0, 1)  # column by column
    if call.options["remove_center"]:
        taps = taps[torch.arange(len(taps)) != len(taps) // 2]
    rows = stride_y * torch.arange(mask.shape[1]) - pad_y + centre_y
    columns = stride_x * torch.arange(mask.shape[2]) - pad_x + centre_x
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[:, :, None, None]
    height, width, groups = input.shape[1], input.shape[2], mask.shape[3]
    places = (cells + scale * (taps + offset) + 0.5) / torch.tensor([width, height])
    expected = ops.ms_deform_attn(
        input.unflatten(3, (groups, -1)).flatten(1, 2),
        [(height, width)],
        None,
        places.flatten(1, 2).unsqueeze(3),
        mask.flatten(1, 2).unsqueeze(3),
    )
    torch.testing.assert_close(call().flatten(1, 2), expected, rtol=0, atol=1e-10)


@given(call=convolutions(DOUBLE))
def test_zero_offsets_are_a_plain_convolution(call: Call) -> None:
    tensors = call.tensors
    out = call(offset=torch.zeros_like(tensors["offset"]), mask=None)
    groups = tensors["input"].shape[1] // tensors["weight"].shape[1]
    options = {name: call.options[name] for name in ("stride", "padding", "dilation")}
    expected = F.conv2d(tensors["input"], tensors["weight"], tensors.get("bias"), groups=groups, **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


@given(call=convolutions(DOUBLE), dy=st.integers(-15, 15), dx=st.integers(-15, 15))
def test_whole_offsets_are_a_shift_of_the_input(call: Call, dy: int, dx: int) -> None:
    tensors, (pad_y, pad_x) = call.tensors, call.options["padding"]
    offset = torch.tensor([dy, dx], dtype=torch.float64).repeat(tensors["offset"].shape[1] // 2)
    out = call(offset=offset.view(1, -1, 1, 1).expand(tensors["offset"].shape), mask=None)
    wide = F.pad(tensors["input"], (30, 30, 30, 30))
    shifted = F.pad(wide, (pad_x - dx - 30, pad_x + dx - 30, pad_y - dy - 30, pad_y + dy - 30))
    options = {name: call.options[name] for name in ("stride", "dilation")}
    groups = tensors["input"].shape[1] // tensors["weight"].shape[1]
    expected = F.conv2d(shifted, tensors["weight"], tensors.get("bias"), groups=groups, **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


@given(call=convolutions())
def test_a_mask_of_ones_is_no_mask(call: Call) -> None:
    offset = call.tensors["offset"]
    ones = offset.new_ones(offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])
    same_bits({"output": call(mask=ones)}, {"output": call(mask=None)})


@given(call=poolings(names=("deform_roi_pool", "deform_ps_roi_pool")))
def test_offsets_of_zero_move_nothing(call: Call) -> None:
    zeros = torch.zeros(len(call.tensors["rois"]), 2, 2, 3, dtype=call.tensors["rois"].dtype)
    same_bits({"output": call(offset=zeros)}, {"output": call(offset=None)})


@given(call=calls, seed=seeds)
def test_the_order_of_images_and_rois_is_the_order_of_results(call: Call, seed: int) -> None:
    lines = ("rois", "offset") if "rois" in call.tensors else BY_IMAGE
    order = torch.randperm(len(call()), generator=generator(seed))
    mixed = call.with_tensors(**{name: call.tensors[name][order] for name in lines if name in call.tensors})
    assert_same(call, {"output": mixed()}, {"output": call()[order]})


@given(call=poolings())
def test_rois_come_as_lines_or_as_a_list(call: Call) -> None:
    rois = call.tensors["rois"]
    order = rois[:, 0].argsort(stable=True)
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(len(call.tensors["input"]))]
    changed = {name: call.tensors[name][order] for name in ("rois", "offset") if name in call.tensors}
    same_bits({"output": call(**{**changed, "rois": boxes})}, {"output": call(**changed)})


@given(call=plain_calls, seed=seeds)
def test_linear_in_input_weight_and_mask(call: Call, seed: int) -> None:
    for name in LINEAR:
        if name in call.tensors:
            one, other = call.tensors[name], like(call.tensors[name], seed)
            without = {"bias": None} if "weight" in call.tensors else {}
            both = call(**{name: 2 * one - 3 * other, **without})
            parts = 2 * call(**without) - 3 * call(**{name: other, **without})
            assert_same(call, {"output": both}, {"output": parts})


@given(call=plain_calls)
def test_gradients_are_the_transpose_of_the_values(call: Call) -> None:
    """Of a linear function f with gradient g at any point, <f(x), grad> = <x, g>."""
    if "bias" in call.tensors:
        call = replace(call, tensors={name: tensor for name, tensor in call.tensors.items() if name != "bias"})
    results = replace(call, grad_layout="contiguous").results()
    grad = torch.randn(results["output"].shape, generator=generator(1)).double()
    inner = (results["output"] * grad).sum()
    for name in LINEAR:
        if name in call.tensors:
            size = max(results["output"].abs().sum().item(), 1)
            assert abs((results[name] * call.tensors[name]).sum() - inner).item() <= 1e-11 * size


@given(call=calls)
def test_threads_change_no_bit(call: Call) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "threads", lambda work: 1)
        alone = call.results()
        patch.setattr(_native, "threads", lambda work: 2)
        same_bits(call.results(), alone)


@given(call=convolutions(kinds=("random",), layouts=LAYOUTS[:4]), data=st.data())
def test_a_nan_offset_shows_where_it_is_read_and_nowhere_else(call: Call, data: st.DataObject) -> None:
    tensors = call.tensors
    assume(tensors["offset"].numel())
    at = tuple(data.draw(st.integers(0, size - 1)) for size in tensors["offset"].shape)
    offset = tensors["offset"].clone()
    offset[at] = float("nan")
    taps = tensors["weight"].shape[2] * tensors["weight"].shape[3]
    of_offset_group = tensors["input"].shape[1] // (tensors["offset"].shape[1] // (2 * taps))
    read = torch.arange(tensors["input"].shape[1]) // of_offset_group == at[1] // (2 * taps)
    of_group = read.view(-1, tensors["weight"].shape[1]).any(1)  # whether a group of the weight reads such a channel
    outputs = of_group.repeat_interleave(tensors["weight"].shape[0] // len(of_group))
    expected = call()
    expected[at[0], outputs, at[2], at[3]] = float("nan")
    same_bits({"output": call(offset=offset)}, {"output": expected})


@given(call=st.one_of(attentions(kinds=("random",)), aggregations(kinds=("random",))), data=st.data())
def test_a_nan_position_shows_in_its_own_head_of_its_own_query_and_nowhere_else(
    call: Call, data: st.DataObject
) -> None:
    name = "offset" if "offset" in call.tensors else "sampling_locations"
    positions = call.tensors[name].clone(memory_format=torch.contiguous_format)
    assume(positions.numel())
    *before, head = (data.draw(st.integers(0, size - 1)) for size in positions.shape[: 4 if name == "offset" else 3])
    expected = call(**{name: positions})
    heads = positions.shape[len(before)]
    expected.unflatten(-1, (heads, -1))[(*before, head)] = float("nan")
    inner = tuple(data.draw(st.integers(0, size - 1)) for size in positions.shape[len(before) + 1 :])
    positions[(*before, head, *inner)] = float("nan")
    same_bits({"output": call(**{name: positions})}, {"output": expected})


@given(call=poolings(names=("deform_roi_pool", "deform_ps_roi_pool")), data=st.data())
def test_a_nan_offset_shows_in_the_bins_of_its_part_and_nowhere_else(call: Call, data: st.DataObject) -> None:
    offset = call.tensors.get("offset")
    assume(offset is not None and offset.numel())
    offset = torch.where(offset.isnan(), 0.25, offset)  # also where it is laid out over itself
    at = tuple(data.draw(st.integers(0, size - 1)) for size in offset.shape)
    expected = call(offset=offset)
    changed = offset.clone()
    changed[at] = float("nan")
    out = call(offset=changed)
    outs = out.shape[1] // (offset.shape[1] // 2)
    may = torch.zeros_like(out, dtype=torch.bool)
    rows, columns = (
        torch.arange(out.shape[2 + i]) * offset.shape[2 + i] // out.shape[2 + i] == at[2 + i] for i in (0, 1)
    )
    of_class = slice(at[1] // 2 * outs, (at[1] // 2 + 1) * outs)
    may[at[0], of_class] = rows.unsqueeze(1) & columns
    reads = expected != 0  # a bin without cells is zero
    assert out[may & reads].isnan().all()
    same_bits({"output": out[~may]}, {"output": expected[~may]})


@given(call=calls)
def test_memory_that_is_not_set_is_not_read(call: Call) -> None:
    expected = call.results()
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        same_bits(call.results(), expected)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_a_tensor_that_is_not_aligned_is_read() -> None:
    memory = bytearray(4 * 27 + 1)
    crooked = torch.frombuffer(memory, dtype=torch.float32, offset=1).view(1, 3, 3, 3)
    straight = crooked.copy_(torch.randn(1, 3, 3, 3)).clone()
    rois = torch.tensor([[0.0, 0, 0, 3, 3]])
    assert torch.equal(ops.roi_pool(crooked, rois, 2), ops.roi_pool(straight, rois, 2))
    offset, weight = torch.zeros(1, 2, 3, 3), torch.ones(2, 3, 1, 1)
    assert torch.equal(ops.deform_conv2d(crooked, offset, weight), ops.deform_conv2d(straight, offset, weight))
