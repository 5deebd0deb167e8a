"""The gate lets right implementations through, and no wrong one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.bench import gate, peers
from pliant.bench.gate import check, expected
from pliant.bench.implementation import FLOAT32_TOLERANCE, InTorch
from pliant.bench.rows import GAMMA, STRIDE, CallRow, ConvRow, PoolRow, variants

CONVOLUTION = ConvRow(2, 8, 6, 11, 9, dilation=2, offset_groups=2)
POOLINGS = [
    PoolRow(4, position_sensitive=True, offset_classes=2, sampling="paper", rois=9, bins=3, height=12, width=14),
    PoolRow(4, position_sensitive=False, offset_classes=1, sampling="authors", rois=9, bins=3, height=12, width=14),
]


CALLS = [
    CallRow(2, 8, 6, 10, 11, dilation=2, offset_groups=2, masked=True),
    CallRow(2, 8, 6, 10, 11, dilation=2, channels_last=True),
]


@pytest.fixture(autouse=True)
def _few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CELLS", 72)  # four rows of eleven
    monkeypatch.setattr(gate, "ROIS", 4)


def convolve(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return ops.deform_conv2d(input, offset, weight, padding=2, dilation=2)


def error(function: Callable[..., Tensor]) -> tuple[float, str]:
    tensors = CONVOLUTION.tensors()
    verdict = check(InTorch(function, tensors), expected(CONVOLUTION, tensors))
    return verdict.error, verdict.where


@pytest.mark.parametrize("name", ["conv2d", "Pliant", "torchvision", "Pliant bfloat16"])
def test_right_convolutions_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.machine, "multiplies_bfloat16", lambda: True)
    tensors = CONVOLUTION.tensors()
    implementation = peers.CONVOLUTION[name](CONVOLUTION, tensors, 1)
    verdict = check(implementation, expected(CONVOLUTION, tensors, implementation.border, implementation.ignored))
    assert 0 < verdict.error <= implementation.tolerance


@pytest.mark.parametrize("name", ["conv2d", "Pliant", "torchvision"])
@pytest.mark.parametrize("row", CALLS, ids=["mask", "channels last"])
def test_right_calls_with_masks_and_in_another_layout_pass(row: CallRow, name: str) -> None:
    tensors = row.tensors()
    assert ("mask" in tensors) == row.masked
    assert tensors["input"].is_contiguous(memory_format=torch.channels_last) == row.channels_last
    implementation = peers.CONVOLUTION[name](row, tensors, 1)
    assert implementation.trains
    verdict = check(implementation, expected(row, tensors, implementation.border, implementation.ignored))
    assert 0 < verdict.error <= implementation.tolerance


@pytest.mark.parametrize("name", peers.VARIANTS)
def test_masks_and_half_precision_pass_beside_float32(name: str) -> None:
    (row,) = variants([CONVOLUTION, *CALLS])
    assert row.name == CONVOLUTION.name
    tensors = row.tensors()
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(tensors["offset"].to(dtype).float(), tensors["offset"])
    assert (tensors["offset"] * 8 % 2 == 1).all()
    implementation = peers.VARIANTS[name](row, tensors, 1)
    assert ("mask" in implementation.leaves) == ("mask" not in implementation.ignored) == (name == "with a mask")
    assert name.split()[0] in ("with", str(implementation.leaves["input"].dtype).removeprefix("torch."))
    verdict = check(implementation, expected(row, tensors, implementation.border, implementation.ignored))
    assert 0 < verdict.error <= implementation.tolerance
    implementation.trains = False
    other = expected(row, tensors, ignored={"mask"} - implementation.ignored)
    assert check(implementation, other).error > 0.1


@pytest.mark.parametrize(("module", "name"), [("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")])
@pytest.mark.parametrize("row", [CONVOLUTION, *CALLS], ids=["plain", "mask", "channels last"])
def test_runtimes_compute_the_same(module: str, name: str, row: ConvRow) -> None:
    pytest.importorskip(module, reason=f"{name} is not installed; the extra bench has it")
    pytest.importorskip("onnx")
    tensors = row.tensors()
    runtime = peers.CONVOLUTION[name](row, tensors, 1)
    assert not runtime.trains
    assert 0 < check(runtime, expected(row, tensors)).error <= FLOAT32_TOLERANCE
    assert runtime.turn(False, 2) > 0


@pytest.mark.parametrize("row", POOLINGS, ids=["position-sensitive", "plain"])
def test_right_poolings_pass(row: PoolRow) -> None:
    tensors = row.tensors()
    verdict = check(peers.reference_pooling(row, tensors, 1), expected(row, tensors))
    assert 0 < verdict.error <= FLOAT32_TOLERANCE


def test_another_border_is_wrong() -> None:
    found, _ = error(
        lambda input, offset, weight: ops.deform_conv2d(input, offset, weight, None, 1, 2, 2, border="authors")
    )
    assert found > 100 * FLOAT32_TOLERANCE


def test_one_wrong_output_cell_in_the_last_row_is_wrong() -> None:
    def spoiled(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        output = convolve(input, offset, weight)
        return output + torch.zeros_like(output).index_put_(
            (torch.tensor(1), torch.tensor(5), torch.tensor(-1), torch.tensor(0)), torch.tensor(0.01)
        )

    found, where = error(spoiled)
    assert where == "output"
    assert found > FLOAT32_TOLERANCE


def test_a_wrong_gradient_under_a_right_output_is_wrong() -> None:
    found, where = error(
        lambda input, offset, weight: convolve(input, 1.001 * offset - 0.001 * offset.detach(), weight)
    )
    assert where == "grad_offset"
    assert found == pytest.approx(1e-3, rel=0.01)


def test_a_gradient_where_none_should_be_is_wrong() -> None:
    """Beyond the compared rows the output's gradient is zero, and so must be the offset's."""
    tensors = CONVOLUTION.tensors()
    wanted = expected(CONVOLUTION, tensors)
    right = InTorch(convolve, tensors)

    class Leaking(InTorch):
        def gradients(self, grad: Tensor) -> dict[str, Tensor]:
            found = right.gradients(grad)
            found["offset"][:, :, 1] += 0.1
            return found

    assert 1 not in wanted.lines
    verdict = check(Leaking(convolve, tensors), wanted)
    assert verdict.where == "grad_offset"
    assert verdict.error > FLOAT32_TOLERANCE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_infinitely_wrong(value: float) -> None:
    assert error(lambda input, offset, weight: convolve(input, offset, weight) * value)[0] == float("inf")


def test_a_wrong_shape_is_infinitely_wrong() -> None:
    tensors = CONVOLUTION.tensors()
    wanted = expected(CONVOLUTION, tensors)
    one_more = InTorch(lambda **arguments: torch.cat([convolve(**arguments)] * 2, dim=1), tensors)
    one_more.trains = False
    assert check(one_more, wanted).error == float("inf")


def test_a_wrong_pooling_is_wrong() -> None:
    row = POOLINGS[0]
    tensors = row.tensors()
    swapped = InTorch(
        lambda input, rois, offset: ops.deform_ps_roi_pool(input, rois, offset.flip(1), row.bins, 1 / STRIDE, GAMMA),
        tensors,
        ("input", "offset"),
    )
    assert check(swapped, expected(row, tensors)).error > 0.01


@pytest.mark.parametrize("row", [CONVOLUTION, *POOLINGS])
def test_float32_and_float64_sample_the_same_places(row: ConvRow | PoolRow) -> None:
    """Offsets are odd multiples of 1/512, and RoIs have whole pixels and sides of four times the bins."""
    tensors = dataclasses.replace(row, spread=5.0).tensors()
    assert (tensors["offset"] * 512 % 2 == 1).all()
    if isinstance(row, PoolRow):
        corners = tensors["rois"][:, 1:].view(-1, 2, 2)
        sides = corners[:, 1] - corners[:, 0] + 1
        assert (sides % (4 * row.bins) == 0).all()
        assert (sides > 0).all()
        assert (corners >= 0).all()
        assert (corners[:, 1] < torch.tensor([row.width, row.height]) * STRIDE).all()
        assert len(sides.unique()) > 1
