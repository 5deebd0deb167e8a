"""torch.func over the operators: what works gives autograd's numbers, what does not says so."""

from __future__ import annotations

import pytest
import torch
from cases import ROIS, ConvCase
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

from pliant import nn, ops

CASE = ConvCase(batch=1, size=(5, 4))


def values() -> list[torch.Tensor]:
    return [value.detach() for value in CASE.tensors().values()]


def convolve(
    input: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    return ops.deform_conv2d(input, offset, weight, bias, mask=mask, **CASE.geometry)


def test_grad_and_vjp() -> None:
    tensors = values()
    want = torch.autograd.grad(
        convolve(*(leaves := [value.clone().requires_grad_() for value in tensors])).sin().sum(), leaves
    )
    got = grad(lambda *each: convolve(*each).sin().sum(), argnums=tuple(range(5)))(*tensors)
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right)
    out, pull = vjp(lambda *each: convolve(*each).sin().sum(), *tensors)
    for left, right in zip(pull(torch.ones_like(out)), want, strict=True):
        torch.testing.assert_close(left, right)


def test_vmap_and_gradients_of_each_sample() -> None:
    case = ConvCase(batch=3, size=(5, 4))
    input, offset, weight, bias, mask = (value.detach() for value in case.tensors().values())

    def one(image: torch.Tensor, moved: torch.Tensor, modulation: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolve(image[None], moved[None], weight, bias, modulation[None])[0]

    axes = (0, 0, 0, None)
    torch.testing.assert_close(
        vmap(one, axes)(input, offset, mask, weight), convolve(input, offset, weight, bias, mask)
    )
    each = vmap(grad(lambda *parts: one(*parts).square().sum(), argnums=3), axes)(input, offset, mask, weight)
    for index in range(3):
        parts = input[index], offset[index], mask[index]
        torch.testing.assert_close(each[index], grad(lambda w, p=parts: one(*p, w).square().sum())(weight))


def test_jacobian() -> None:
    tensors = values()
    jacobian = jacrev(lambda bias: convolve(*tensors[:3], bias, tensors[4])[0, :, 0, 0])(tensors[3])
    torch.testing.assert_close(jacobian, torch.eye(CASE.out_channels, dtype=torch.float64))


def test_a_layer_as_a_function_of_its_parameters() -> None:
    layer = nn.DeformConv2d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 5, 4)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    got = grad(lambda given: functional_call(layer, given, x).square().sum())(parameters)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_pooling() -> None:
    image, rois = torch.randn(2, 4, 9, 11, dtype=torch.float64), torch.tensor(ROIS, dtype=torch.float64)
    offset = torch.randn(len(ROIS), 2, 3, 2, dtype=torch.float64)

    def pooled(image: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return ops.deform_roi_pool(image, rois, offset, (3, 2), 1 / 8)

    leaves = [image.clone().requires_grad_(), offset.clone().requires_grad_()]
    want = torch.autograd.grad(pooled(*leaves).sin().sum(), leaves)
    for left, right in zip(grad(lambda *a: pooled(*a).sin().sum(), (0, 1))(image, offset), want, strict=True):
        torch.testing.assert_close(left, right)
    stacked = torch.stack((offset, -offset))
    torch.testing.assert_close(vmap(pooled, (None, 0))(image, stacked)[1], pooled(image, -offset))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_what_there_is_not_is_said() -> None:
    tensors = values()

    def of_weight(weight: torch.Tensor) -> torch.Tensor:
        return convolve(*tensors[:2], weight, *tensors[3:]).square().sum()

    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        jvp(of_weight, (tensors[2],), (tensors[2],))
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        jacfwd(of_weight)(tensors[2])
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"), forward_ad.dual_level():
        of_weight(forward_ad.make_dual(tensors[2], tensors[2]))
