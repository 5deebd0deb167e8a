"""Costs, against arithmetic by hand."""

from __future__ import annotations

import importlib

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pliant import ops
from pliant.introspect import compare_with_plain, complexity
from pliant.nn import DeformConv2d


def test_one_layer_by_hand() -> None:
    layer = DeformConv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, offset_groups=2)
    found = complexity(layer.train(), torch.rand(2, 4, 9, 8), min_seconds=0.01)
    places = 2 * 5 * 5
    offsets = places * (2 * 2 * 6) * 4 * 6
    assert found.multiply_adds == offsets + places * 6 * 2 * 6 + 4 * places * 4 * 6
    assert found.parameters == 6 * 2 * 6 + 6 + 24 * 4 * 6 + 24
    assert found.seconds > 0
    assert found.peak_bytes == 4 * places * (24 + 6)
    assert layer.training


def test_torchvisions_layer_counts_alike() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torchvision.ops.DeformConv2d(4, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, x.new_zeros(1, 18, 7, 5))

    found = complexity(Network(), torch.rand(1, 4, 7, 5), min_seconds=0.01)
    assert found.multiply_adds == 35 * (6 * 4 * 9 + 4 * 4 * 9)


def test_the_backward_is_counted() -> None:
    input, weight = torch.rand(1, 4, 7, 5, requires_grad=True), torch.rand(6, 4, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        ops.deform_conv2d(input, torch.rand(1, 18, 7, 5), weight, padding=1).sum().backward()
    products, samples = 35 * 6 * 4 * 9, 35 * 4 * 9
    assert counter.get_total_flops() == 2 * (3 * products + 5 * 4 * samples)


def test_memory_is_what_lives_at_once() -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            large = x.repeat(10)
            kept = large[:100]  # a view keeps all of it
            small = kept + 1
            del large, kept
            return small.relu_() + small

    assert complexity(Network(), torch.rand(100), min_seconds=0.01).peak_bytes == 4 * 1100


def test_plain_and_deformable_share_all_but_the_offset_branch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), DeformConv2d(8, 8, 3, padding=1))
    found = compare_with_plain(model, torch.rand(1, 3, 12, 10), min_seconds=0.01)
    assert found.deformable.parameters - found.plain.parameters == 18 * 8 * 9 + 18
    assert found.deformable.multiply_adds - found.plain.multiply_adds == 120 * (18 * 8 * 9 + 4 * 8 * 9)
    assert isinstance(model[1], DeformConv2d)
    other = compare_with_plain(model, torch.rand(1, 3, 12, 10), plain=nn.Conv2d(3, 1, 1), min_seconds=0.01)
    assert other.plain.parameters == 4


def test_times_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([[1.0, 30.0, 2.0, 3.0, 1.5], [2.0, 45.0, 4.0, 6.0, 9.0]])
    module = importlib.import_module("pliant.introspect.complexity")
    monkeypatch.setattr(module, "_seconds", lambda *_: list(times))
    found = compare_with_plain(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4))
    assert (found.plain.seconds, found.deformable.seconds, found.time_ratio) == (2.0, 6.0, 2.0)
