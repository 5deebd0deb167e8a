"""torch.compile of torch.func over the operators: eager's numbers, or the sentence that eager raises.

The kernels that run are those of any call, so one implementation is enough.
"""

from __future__ import annotations

import pytest
import torch
from cases import ROIS, ConvCase
from torch.func import grad, jacrev, jvp, vjp, vmap

from pliant import ops

CASE = ConvCase(batch=1, size=(5, 4))


def values() -> list[torch.Tensor]:
    return [value.detach() for value in CASE.tensors().values()]


def convolve(
    input: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    return ops.deform_conv2d(input, offset, weight, bias, mask=mask, **CASE.geometry)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["grad", "vjp", "jacrev", "vmap", "gradients of each sample", "pooling", "twice"])
def test_compiled_transforms_are_those_of_eager(name: str) -> None:
    input, offset, weight, bias, mask = values()
    image, rois = torch.randn(2, 4, 9, 11, dtype=torch.float64), torch.tensor(ROIS, dtype=torch.float64)
    moves = torch.randn(2, len(ROIS), 2, 3, 2, dtype=torch.float64)

    def loss(input: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolve(input, offset, weight, bias, mask).sin().sum()

    def pooled(moves: torch.Tensor) -> torch.Tensor:
        return ops.deform_roi_pool(image, rois, moves, (3, 2), 1 / 8).sin().sum()

    run, inputs = {
        "grad": (grad(loss, (0, 1, 2)), (input, offset, weight)),
        "vjp": (lambda *each: vjp(loss, *each)[1](input.new_ones(())), (input, offset, weight)),
        "jacrev": (jacrev(lambda weight: convolve(input, offset, weight, bias, mask)[0, :, 0, 0]), (weight,)),
        "vmap": (vmap(lambda bias: convolve(input, offset, weight, bias, mask)), (torch.stack((bias, -bias)),)),
        "gradients of each sample": (
            vmap(grad(lambda offset: loss(input, offset, weight))),
            (torch.stack((offset, -offset)),),
        ),
        "pooling": (vmap(grad(pooled)), (moves,)),
        "twice": (grad(lambda *each: grad(loss)(*each).square().sum(), (0, 1, 2)), (input, offset, weight)),
    }[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda *each: run(*each), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), run(*inputs))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_compiled_transforms_that_there_are_not_say_so() -> None:
    tensors = values()

    def of_weight(weight: torch.Tensor) -> torch.Tensor:
        return convolve(*tensors[:2], weight, *tensors[3:]).square().sum()

    def compiled(run):  # type: ignore[no-untyped-def]
        torch._dynamo.reset()
        return torch.compile(run, backend="aot_eager")

    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        compiled(lambda weight: jvp(of_weight, (weight,), (weight,)))(tensors[2])
