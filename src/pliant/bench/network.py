"""What a whole network feels: a training step of Faster R-CNN, plain and deformable, the latter on Pliant's and on
torchvision's operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from time import perf_counter
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from pliant import ops
from pliant.bench.measure import TRAINING, Interleave, Outcome, RowResult, judged, note
from pliant.bench.timing import interleave
from pliant.models import faster_rcnn
from pliant.nn import DeformConv2d, DeformRoIPool

PLAIN, PLIANT, TORCHVISION = "plain", "deformable", "deformable, torchvision's operator"
CLASSES = 21
# Of gradients, by their norms: in layer after layer, rounding moves a sample across a cell's kink now and then.
TOLERANCE = 2e-2
CONVOLUTION_SPREAD = 2.0  # standard deviation of the offsets, in cells
POOLING_SPREAD = 1.0  # and in tenths of a RoI's size
_SEED = 0

Context = Callable[[], AbstractContextManager[object]]


def measure_network(
    seconds: float,
    size: tuple[int, int] = (600, 800),
    backbone: str = "resnet50",
    deform_layers: int = 3,
    timed: Interleave = interleave,
) -> RowResult:
    """Time forward and backward of the three networks, with random weights and offsets of some cells.

    The same network on both operators must have the same gradients, or torchvision's is reported as wrong.

    Args:
        seconds: for all; three rounds at least.
        size: of the image, short side first.
        backbone, deform_layers: of `pliant.models.faster_rcnn`.
        timed: how turns are timed.
    """
    build = partial(faster_rcnn, CLASSES, backbone=backbone, min_size=size[0], max_size=size[1])
    sample = _sample(size)
    plain = started(build(deform_layers=0, deform_roi=False))
    deformable = started(build(deform_layers=deform_layers, deform_roi=True))
    spread_offsets(deformable, partial(deformable, *sample))
    networks: dict[str, tuple[nn.Module, Context]] = {
        PLAIN: (plain, nullcontext),
        PLIANT: (deformable, nullcontext),
        TORCHVISION: (deformable, torchvisions_operator),
    }
    found = {name: _gradients(*network, sample) for name, network in networks.items()}
    outcomes = {name: _judge(found[name], found[name]) for name in (PLAIN, PLIANT)}
    outcomes[TORCHVISION] = _judge(found[TORCHVISION], found[PLIANT])
    turns = {name: partial(_turn, *networks[name], sample) for name in networks if outcomes[name].status == "right"}
    if PLAIN in turns:
        note(outcomes, PLAIN, TRAINING, timed(turns, seconds))
    return RowResult(f"Faster R-CNN, {backbone}, {size[0]}×{size[1]}", PLAIN, outcomes, (TRAINING,))


def _sample(size: tuple[int, int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(_SEED)
    height, width = size
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    sides = (0.1 + 0.3 * torch.rand(8, 2, generator=generator)) * torch.tensor([width, height])
    labels = torch.randint(1, CLASSES, (8,), generator=generator)
    target = {"boxes": torch.cat((corner, corner + sides), dim=1), "labels": labels}
    return [torch.rand(3, height, width, generator=generator)], [target]


def started(model: nn.Module) -> nn.Module:
    """Keep random features from growing: what a residual block adds is a fifth of what it has."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.data.fill_(0.2)
    return model.train()


@torch.no_grad()
def spread_offsets(model: nn.Module, run: Callable[[], object]) -> None:
    """Give the offset branches random weights, scaled while `run` calls the model, so that outputs have a spread."""
    handles = []
    for module in model.modules():
        branch: nn.Conv2d | nn.Linear
        if isinstance(module, DeformConv2d):
            branch, spread = module.offset_conv, CONVOLUTION_SPREAD
        elif isinstance(module, DeformRoIPool):
            branch, spread = module.offset_fc, POOLING_SPREAD
        else:
            continue
        nn.init.normal_(branch.weight)
        handles.append(branch.register_forward_hook(partial(_rescale, spread)))
    run()
    for handle in handles:
        handle.remove()


def _rescale(spread: float, branch: nn.Conv2d | nn.Linear, _: Any, output: Tensor) -> Tensor:
    scale = spread / output.std()
    branch.weight.mul_(scale)
    return output * scale


def _gradients(model: nn.Module, context: Context, sample: tuple[Any, Any]) -> list[Tensor]:
    _step(model, context, sample)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _judge(got: list[Tensor], want: list[Tensor]) -> Outcome:
    return judged(max(map(_distance, got, want)), "a gradient", TOLERANCE)


def _distance(got: Tensor, want: Tensor) -> float:
    """The norm of the difference as a part of the norm wanted; infinite where it is no number."""
    apart = (got - want).norm()
    distance = float(apart / want.norm()) if apart else 0.0
    return math.inf if math.isnan(distance) else distance


def _step(model: nn.Module, context: Context, sample: tuple[Any, Any]) -> None:
    """Forward and backward; the same random choices every time."""
    torch.manual_seed(_SEED)
    model.zero_grad(set_to_none=True)
    with context():
        losses = model(*sample)
        torch.stack(list(losses.values())).sum().backward()


def _turn(model: nn.Module, context: Context, sample: tuple[Any, Any], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        _step(model, context, sample)
    return perf_counter() - start


def torchvisions_operator() -> AbstractContextManager[object]:
    """Pliant's layers call torchvision's operator within."""
    return mock.patch.object(ops, "deform_conv2d", _call_torchvision)


def _call_torchvision(*arguments: Any, border: str) -> Tensor:
    if border != "paper":
        raise ValueError(f"torchvision's operator has the paper's border alone, got {border!r}")
    return torchvision.ops.deform_conv2d(*arguments)
