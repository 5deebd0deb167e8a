"""mmcv's names: numbers against other implementations, state dicts against the names that mmcv writes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision
from cases import ConvCase
from torch import Tensor, nn

import pliant
from pliant.compat import mmcv

CASE = ConvCase(kernel=(3, 3), dilation=(1, 2))


def conv_arguments(case: ConvCase) -> tuple[Any, ...]:
    return case.stride, case.padding, case.dilation, case.groups, case.offset_groups


@pytest.mark.parametrize("modulated", [False, True])
def test_convolutions_take_mmcvs_arguments_in_its_order(modulated: bool) -> None:
    tensors = CASE.tensors()
    input, offset, weight, bias, mask = tensors.values()
    if modulated:
        got = mmcv.modulated_deform_conv2d(input, offset, mask, weight, bias, *conv_arguments(CASE))
    else:
        got = mmcv.deform_conv2d(input, offset, weight, *conv_arguments(CASE), False, 32)
        bias = mask = None
    want = torchvision.ops.deform_conv2d(input, offset, weight, bias, **CASE.geometry, mask=mask)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_a_modulated_convolution_reads_offsets_of_a_larger_map_as_mmcv_does() -> None:
    """As in DyHead, whose trained weights depend on it. mmcv's plain convolution refuses it."""
    torch.manual_seed(0)
    input, weight = torch.randn(2, 4, 6, 5, dtype=torch.double), torch.randn(3, 4, 3, 3, dtype=torch.double)
    larger = torch.randn(2, 18, 12, 10, dtype=torch.double, requires_grad=True)
    mask = torch.rand(2, 9, 12, 10, dtype=torch.double)
    read = (
        larger.reshape(2, -1)[:, : 18 * 30].reshape(2, 18, 6, 5),
        mask.reshape(2, -1)[:, : 9 * 30].reshape(2, 9, 6, 5),
    )
    want = torchvision.ops.deform_conv2d(input, read[0], weight, padding=1, mask=read[1])
    got = mmcv.modulated_deform_conv2d(input, larger, mask, weight, None, 1, 1)
    torch.testing.assert_close(got, want)
    slopes = [torch.autograd.grad(out.square().sum(), larger, retain_graph=True)[0] for out in (got, want)]
    torch.testing.assert_close(*slopes)
    with pytest.raises(ValueError, match="the shape of the offset must be"):
        mmcv.deform_conv2d(input, larger, weight, 1, 1)
    with pytest.raises(ValueError, match="the shape of the offset must be"):
        mmcv.modulated_deform_conv2d(input, larger[:, :, :3, :3], None, weight, None, 1, 1)


def test_convolutions_convert_to_the_dtype_of_the_offset() -> None:
    input, offset, weight, bias, mask = CASE.tensors(torch.float32).values()
    arguments = conv_arguments(CASE)
    assert mmcv.deform_conv2d(input, offset.double(), weight, *arguments).dtype == torch.float64
    half = mmcv.modulated_deform_conv2d(input, offset.half(), mask.half(), weight, bias, *arguments)
    assert half.dtype == torch.float16


def test_convolutions_refuse_groups_that_do_not_fit() -> None:
    input, offset, weight, *_ = CASE.tensors().values()
    with pytest.raises(ValueError, match="groups 2 and deform_groups 1 do not go with input"):
        mmcv.deform_conv2d(input, offset, weight, CASE.stride, CASE.padding, CASE.dilation, 2, 1)
    with pytest.raises(ValueError, match="bias must be False"):
        mmcv.deform_conv2d(input, offset, weight, bias=True)


LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], list[str]]] = {
    "DeformConv2d": (mmcv.DeformConv2d, {}, ["weight"]),
    "DeformConv2dPack": (mmcv.DeformConv2dPack, {}, ["weight", "conv_offset.weight", "conv_offset.bias"]),
    "ModulatedDeformConv2d": (mmcv.ModulatedDeformConv2d, {}, ["weight", "bias"]),
    "ModulatedDeformConv2dPack": (
        mmcv.ModulatedDeformConv2dPack,
        {},
        ["weight", "bias", "conv_offset.weight", "conv_offset.bias"],
    ),
    "without bias": (
        mmcv.ModulatedDeformConv2dPack,
        {"bias": False},
        ["weight", "conv_offset.weight", "conv_offset.bias"],
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_convolution_layers_have_mmcvs_state_dicts_and_numbers(name: str) -> None:
    build, given, names = LAYERS[name]
    layer = build(8, 6, 3, stride=2, padding=1, groups=2, deformable_groups=2, **given).double()
    assert list(layer.state_dict()) == names
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 7, 9).double()
    if hasattr(layer, "conv_offset"):
        branch = layer.conv_offset(x)
        offset, mask = branch[:, :36], branch[:, 36:].sigmoid()
        got = layer(x)
    else:
        offset, mask = torch.randn(2, 36, 4, 5).double(), torch.rand(2, 18, 4, 5).double()
        got = layer(x, offset) if isinstance(layer, mmcv.DeformConv2d) else layer(x, offset, mask)
    used = None if isinstance(layer, mmcv.DeformConv2d) else mask
    bias = getattr(layer, "bias", None)
    want = torchvision.ops.deform_conv2d(x, offset, layer.weight, bias, stride=2, padding=1, mask=used)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("build", [mmcv.DeformConv2dPack, mmcv.ModulatedDeformConv2dPack])
def test_the_offset_branch_beside_the_layer_of_early_files_is_renamed(build: type[nn.Module]) -> None:
    block = nn.ModuleDict({"conv2": build(4, 4, 3, padding=1)})
    nn.init.normal_(block["conv2"].conv_offset.weight)
    early = {name.replace("conv2.conv_offset", "conv2_offset"): value for name, value in block.state_dict().items()}
    assert "conv2_offset.weight" in early
    other = nn.ModuleDict({"conv2": build(4, 4, 3, padding=1)})
    other.load_state_dict(mmcv.with_offset_branches(early, other))
    torch.testing.assert_close(other["conv2"].conv_offset.weight, block["conv2"].conv_offset.weight)
    assert mmcv.with_offset_branches(block.state_dict(), other).keys() == block.state_dict().keys()
    assert block.state_dict()._metadata["conv2"]["version"] == 2


def test_a_map_that_is_smaller_than_the_kernel_is_padded_as_mmcv_does() -> None:
    layer = mmcv.DeformConv2d(4, 3, 3, padding=1)
    x, offset = torch.randn(1, 4, 2, 5), torch.randn(1, 18, 2, 5)
    wide = torchvision.ops.deform_conv2d(
        nn.functional.pad(x, (0, 0, 0, 1)), nn.functional.pad(offset, (0, 0, 0, 1)), layer.weight, padding=1
    )
    torch.testing.assert_close(layer(x, offset), wide[:, :, :2])


ROIS = torch.tensor(
    [[0, 3.2, 5, 60, 70], [1, -20, 0, 30, 44], [0, 60, 50, 300, 300], [1, 8, 8, 8, 8], [1, 30, 30, 20, 60]]
)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_deformable_roi_pooling_at_rest_is_roi_align(sampling_ratio: int) -> None:
    input = torch.randn(2, 5, 9, 11).double()
    got = mmcv.deform_roi_pool(input, ROIS.double(), None, (3, 2), 1 / 8, sampling_ratio)
    want = torchvision.ops.roi_align(input, ROIS.double(), (3, 2), 1 / 8, sampling_ratio, aligned=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def in_loops(input: Tensor, rois: Tensor, offset: Tensor, bins: tuple[int, int], scale: float, gamma: float) -> Tensor:
    """As mmcv's kernel: bin by bin and sample by sample."""
    out = torch.zeros(len(rois), input.shape[1], *bins, dtype=input.dtype)
    height, width = input.shape[2:]
    for r, (image, x0, y0, x1, y1) in enumerate(rois.tolist()):
        wide, high = (x1 - x0) * scale, (y1 - y0) * scale
        rows, columns = math.ceil(high / bins[0]), math.ceil(wide / bins[1])
        for i in range(bins[0]):
            for j in range(bins[1]):
                left = x0 * scale - 0.5 + gamma * wide * offset[r, 0, i, j].item() + j * wide / bins[1]
                top = y0 * scale - 0.5 + gamma * high * offset[r, 1, i, j].item() + i * high / bins[0]
                for a in range(rows):
                    for b in range(columns):
                        y, x = top + (a + 0.5) * high / bins[0] / rows, left + (b + 0.5) * wide / bins[1] / columns
                        if y < -1 or y > height or x < -1 or x > width:
                            continue
                        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                        for row, of_row in ((int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)):
                            for column, of_column in ((int(x), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)):
                                out[r, :, i, j] += of_row * of_column * input[int(image), :, row, column]
                out[r, :, i, j] /= max(rows * columns, 1)
    return out


def test_deformable_roi_pooling_against_loops_and_gradcheck() -> None:
    input, rois = torch.randn(2, 3, 6, 7).double(), ROIS.double()
    offset = torch.randn(len(rois), 2, 2, 3).double()
    got = mmcv.deform_roi_pool(input, rois, offset, (2, 3), 1 / 8, gamma=0.5)
    torch.testing.assert_close(got, in_loops(input, rois, offset, (2, 3), 1 / 8, 0.5), rtol=0, atol=1e-12)
    leaves = input.requires_grad_(), offset.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda input, offset: mmcv.deform_roi_pool(input, rois, offset, (2, 3), 1 / 8, 2, 0.5), leaves, fast_mode=True
    )


def test_deformable_roi_pooling_of_nothing_and_of_the_wrong_shape() -> None:
    input = torch.randn(2, 3, 6, 7)
    assert mmcv.deform_roi_pool(input, torch.zeros(0, 5), None, 3).shape == (0, 3, 3, 3)
    for rois, offset, message in (
        (ROIS[:, :4], None, r"rois must have shape \[R, 5\]"),
        (ROIS, torch.zeros(1, 2, 3, 3), r"offset must have shape \[5, 2, 3, 3\]"),
        (ROIS + 1, None, "rois must name one of 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            mmcv.deform_roi_pool(input, rois, offset, 3)


def test_roi_pooling_layers_have_mmcvs_state_dicts_and_numbers() -> None:
    offset = [f"offset_fc.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    mask = [f"mask_fc.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    input = torch.randn(2, 4, 9, 11)
    plain = mmcv.DeformRoIPool(3, 1 / 8, 2)
    assert not plain.state_dict()
    pack = mmcv.DeformRoIPoolPack(3, 4, 6, 1 / 8, 2)
    assert list(pack.state_dict()) == offset
    torch.testing.assert_close(pack(input, ROIS), plain(input, ROIS))
    modulated = mmcv.ModulatedDeformRoIPoolPack(3, 4, deform_fc_channels=6, spatial_scale=1 / 8, sampling_ratio=2)
    assert list(modulated.state_dict()) == offset + mask
    torch.testing.assert_close(modulated(input, ROIS), plain(input, ROIS) / 2)
    for parameter in modulated.parameters():
        nn.init.normal_(parameter, std=0.3)
    at_rest = plain(input, ROIS).flatten(1)
    moved = plain(input, ROIS, modulated.offset_fc(at_rest).view(-1, 2, 3, 3))
    torch.testing.assert_close(modulated(input, ROIS), moved * modulated.mask_fc(at_rest).view(-1, 1, 3, 3))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_is_pliants_with_a_residual(batch_first: bool, coordinates: int) -> None:
    shapes = torch.tensor([[3, 4], [2, 3]])
    theirs = mmcv.MultiScaleDeformableAttention(12, 3, 2, 2, dropout=0.0, batch_first=batch_first)
    ours = pliant.nn.MultiScaleDeformableAttention(12, 3, 2, 2)
    assert list(theirs.state_dict()) == [
        f"{name}.{kind}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for kind in ("weight", "bias")
    ]
    torch.testing.assert_close(theirs.sampling_offsets.bias, ours.sampling_offsets.bias)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    query, position, cells = torch.randn(2, 5, 12), torch.randn(2, 5, 12), torch.randn(2, 18, 12)
    mask, references = torch.rand(2, 18) < 0.3, torch.rand(2, 5, 2, coordinates)
    want = ours(query + position, references, cells, shapes, padding_mask=mask) + query
    given = [each if batch_first else each.transpose(0, 1) for each in (query, cells, position)]
    got = theirs(
        given[0],
        value=given[1],
        query_pos=given[2],
        key_padding_mask=mask,
        reference_points=references,
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 12]),
    )
    torch.testing.assert_close(got if batch_first else got.transpose(0, 1), want)
