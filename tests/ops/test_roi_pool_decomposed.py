"""The fixed sequence of operations against the poolings themselves."""

from __future__ import annotations

import pytest
import torch
from cases import ROIS
from torch import Tensor

from pliant.ops.roi_pool import decomposed, reference
from pliant.ops.roi_pool.reference import Pooling

RULES = ("whole_cells", "authors_whole_cells", "authors_samples")


def both(input: Tensor, rois: Tensor, offset: Tensor | None, pooling: Pooling) -> tuple[Tensor, Tensor]:
    return decomposed.roi_pool(input, rois, offset, pooling), reference.roi_pool(input, rois, offset, pooling)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parts", [(3, 2), (2, 1)])
@pytest.mark.parametrize("classes", [1, 2])
def test_same_values(rule: str, parts: tuple[int, int], classes: int) -> None:
    input, rois = torch.randn(2, 12, 9, 11, dtype=torch.float64), torch.tensor(ROIS, dtype=torch.float64)
    offset = torch.randn(len(ROIS), 2 * classes, *parts, dtype=torch.float64)
    for groups in ((1, 1), (3, 2)):
        for moved in (offset, None):
            got, want = both(input, rois, moved, Pooling((3, 2), groups, 1 / 8, 0.4, rule, 3))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_far_and_nan_offsets_and_no_rois(rule: str) -> None:
    input, rois = torch.randn(2, 4, 9, 11), torch.tensor(ROIS)
    offset = torch.zeros(len(ROIS), 2, 3, 2)
    offset[0], offset[1, 0, 0], offset[5, 1, 2, 1] = 1e30, -float("inf"), float("nan")
    pooling = Pooling((3, 2), (1, 1), 1 / 8, 0.1, rule, 4)
    got, want = both(input, rois, offset, pooling)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    got, want = both(input, rois[:0], offset[:0], pooling)
    assert got.shape == want.shape


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_bins_that_moved_outside_are_exactly_zero(rule: str, axis: int) -> None:
    input, rois = torch.randn(2, 4, 9, 11), torch.tensor(ROIS)
    offset = torch.rand(len(ROIS), 2, 3, 2)
    offset[:, axis] = 1e4
    got, _ = both(input, rois, offset, Pooling((3, 2), (1, 1), 1 / 8, 1.0, rule, 4))
    assert got.count_nonzero() == 0


def test_a_small_bin_of_a_large_map_keeps_its_digits() -> None:
    input = 1000 + torch.randn(1, 1, 200, 300)
    rois = torch.tensor([[0, 290.0, 190.0, 292.0, 192.0]])
    got, want = both(input, rois, None, Pooling((2, 2), (1, 1), 1.0, 0.0, "whole_cells", 1))
    assert torch.equal(got, want)
