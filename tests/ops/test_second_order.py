"""Gradients of gradients: against numerical ones, in a gradient penalty, and through torch.func."""

from __future__ import annotations

import pytest
import torch
from cases import CONV_CASES, ROIS, ConvCase
from torch import Tensor
from torch.func import grad, jacrev, vmap

from pliant import nn, ops

SMALL = ConvCase(batch=1, size=(5, 4))
VALUES = {name: value.detach() for name, value in SMALL.tensors().items()}
POOLINGS = {
    "roi_pool": lambda image, offset, rule: ops.roi_pool(image, rois(), (3, 2), 1 / 8, rule),
    "deform_roi_pool": lambda image, offset, rule: ops.deform_roi_pool(image, rois(), offset, (3, 2), 1 / 8, 0.1, rule),
    "ps_roi_pool": lambda image, offset, rule: ops.ps_roi_pool(image, rois(), 2, 1 / 8, rule),
    "deform_ps_roi_pool": lambda image, offset, rule: ops.deform_ps_roi_pool(
        image, rois(), offset, 2, 1 / 8, 0.1, rule
    ),
}


def rois() -> Tensor:
    return torch.tensor(ROIS, dtype=torch.float64)


def of_offset(offset: Tensor) -> Tensor:
    return ops.deform_conv2d(**{**VALUES, "offset": offset}, **SMALL.geometry).sin().sum()


@pytest.mark.parametrize("border", ops.BORDERS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["groups", "plain", "pointwise", "far offsets", "one-cell map"])
def test_gradients_of_the_convolutions_gradients(name: str, masked: bool, border: str) -> None:
    case = ConvCase(channels=6, out_channels=4, size=(4, 5)) if name == "groups" else CONV_CASES[name]
    tensors = case.tensors()
    if not masked:
        del tensors["mask"]
    names = list(tensors)

    def run(*values: Tensor) -> Tensor:
        return ops.deform_conv2d(**dict(zip(names, values, strict=True)), **case.geometry, border=border)

    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("rule", ["paper", "authors"])
@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_of_the_poolings_gradients(name: str, rule: str) -> None:
    image = torch.randn(2, 8, 9, 11, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(len(ROIS), 4, 2, 2, dtype=torch.float64, requires_grad="deform" in name)
    given = (image, offset) if "deform" in name else (image,)
    assert torch.autograd.gradgradcheck(
        lambda image, offset=offset: POOLINGS[name](image, offset, rule), given, fast_mode=True
    )


def test_a_gradient_penalty_trains() -> None:
    torch.manual_seed(0)
    critic = torch.nn.Sequential(nn.DeformConv2d(3, 8, 3, padding=1, modulated=True), torch.nn.Tanh())
    critic.append(nn.DeformConv2d(8, 1, 3, stride=2))
    torch.nn.init.normal_(critic[0].offset_conv.weight, std=0.3)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    images = torch.randn(4, 3, 7, 6, requires_grad=True)
    penalties = []
    for _ in range(25):
        (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        optimizer.zero_grad()
        penalty.backward()
        assert all(parameter.grad is not None for name, parameter in critic.named_parameters() if name != "2.bias")
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.05 * penalties[0], penalties


def test_derivatives_of_the_third_order() -> None:
    offset = VALUES["offset"].clone().requires_grad_()
    (first,) = torch.autograd.grad(of_offset(offset), offset, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), offset, create_graph=True)
    direction, step = torch.randn_like(offset), 1e-6
    (third,) = torch.autograd.grad((second * direction).sum(), offset)

    def second_at(moved: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(of_offset(moved), moved, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), moved)[0]

    way = torch.randn_like(offset)
    ahead, behind = (second_at((offset + sign * step * way).detach().requires_grad_()) for sign in (1, -1))
    numerical = ((ahead - behind) * direction).sum() / (2 * step)
    torch.testing.assert_close((third * way).sum(), numerical, rtol=1e-4, atol=0)


def test_a_hessian_by_torch_func_is_autograds() -> None:
    offset = VALUES["offset"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(of_offset(offset), offset, create_graph=True)
    row = torch.autograd.grad(slope.flatten()[5], offset)[0]
    torch.testing.assert_close(jacrev(grad(of_offset))(offset.detach()).flatten(0, 3)[5], row)


def test_second_order_of_each_sample() -> None:
    def curved(offset: Tensor) -> Tensor:
        return grad(of_offset)(offset).square().sum()

    offset = VALUES["offset"]
    each = vmap(grad(curved))(torch.stack((offset, -offset)))
    torch.testing.assert_close(each[0], grad(curved)(offset))
    torch.testing.assert_close(each[1], grad(curved)(-offset))


def test_offsets_far_outside_have_no_second_order_gradient() -> None:
    far = torch.full_like(VALUES["offset"], float("inf")).requires_grad_()
    (slope,) = torch.autograd.grad(of_offset(far), far, create_graph=True)
    assert torch.autograd.grad(slope.sum(), far)[0].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_second_order_in_other_precisions(dtype: torch.dtype) -> None:
    narrow = {name: value.to(dtype) for name, value in VALUES.items()}

    def second(values: dict[str, Tensor]) -> list[Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        out = ops.deform_conv2d(**leaves, **SMALL.geometry)
        slopes = torch.autograd.grad((out / 8).square().sum(), list(leaves.values()), create_graph=True)
        total = sum(slope.square().sum() for slope in slopes)
        return list(torch.autograd.grad(total, list(leaves.values())))

    wide = {name: value.double() for name, value in narrow.items()}
    for got, want in zip(second(narrow), second(wide), strict=True):
        assert got.dtype == dtype
        assert (got - want).norm() < 10 * torch.finfo(dtype).eps * want.norm()


def test_second_order_gradients_are_not_lowered_by_autocast() -> None:
    tensors = {name: value.float() for name, value in VALUES.items()}
    results = []
    for lowered in (False, True):
        leaf = tensors["offset"].clone().requires_grad_()
        out = ops.deform_conv2d(**{**tensors, "offset": leaf}, **SMALL.geometry)
        (slope,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            results.append(torch.autograd.grad(slope.square().sum(), leaf)[0])
    assert torch.equal(*results)
