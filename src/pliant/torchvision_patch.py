"""Run torchvision's deformable convolution on Pliant's kernels."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor

from pliant._patch import Patch
from pliant.ops import _native
from pliant.ops._checks import FLOATING, ArgumentTypeError, ShapeError
from pliant.ops.deform_conv2d import check, op

_library: torch.library.Library | None = None
_dtypes: frozenset[torch.dtype] = frozenset()


class patch_torchvision(Patch):
    """Run torchvision's `deform_conv2d` on Pliant's compiled kernels for CPU tensors.

    The patch replaces the dispatcher's CPU kernels of `torchvision::deform_conv2d` and of its backward. It therefore
    covers everything that reaches the operator, before and after: `torchvision.ops.deform_conv2d`,
    `torchvision.ops.DeformConv2d`, and scripted, traced, exported and compiled models. Accepted
    dtypes and errors stay torchvision's, also under autocast, and values agree up to rounding. float16 is more precise,
    because sums are accumulated in float32.

    Other devices keep torchvision's kernels. On a GPU, Pliant's take less time on the device, but in eager mode the
    host takes longer to launch them, so that small maps are slower. Call `pliant.ops.deform_conv2d` where it is faster.

    Call it to patch for good, or use it as a context manager. Patches may be nested; torchvision's own kernels return
    when the last one is undone.

    Raises:
        RuntimeError: if the compiled kernels are not installed, since the reference would not be faster.

    Examples:
        >>> import torchvision
        >>> layer = torchvision.ops.DeformConv2d(8, 8, 3, padding=1)
        >>> input, offset = torch.rand(1, 8, 12, 12), torch.zeros(1, 18, 12, 12)
        >>> expected = layer(input, offset)
        >>> with pliant.patch_torchvision():
        ...     torch.allclose(layer(input, offset), expected, atol=1e-5)
        True
    """

    def __init__(self) -> None:
        super().__init__("torchvision::deform_conv2d")

    def _install(self) -> None:
        if reason := _native.why_not():
            raise RuntimeError(f"patch_torchvision() would gain nothing: {reason}")
        if _library is None:
            _register()

    def _remove(self) -> None:
        global _library
        if _library is not None:
            _library._destroy()
        _library = None


def _register() -> None:
    global _library, _dtypes
    _dtypes = _taken_dtypes()
    library = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():  # about the replaced kernel
        warnings.simplefilter("ignore", UserWarning)
        library.impl("deform_conv2d", _forward, "CPU")
        library.impl("_deform_conv2d_backward", _backward, "CPU")
    _library = library


# In torchvision's order of arguments; a missing bias comes as zeros, a missing mask as an empty tensor. Our kernels run
# below the dispatcher, so autograd and autocast around torchvision's operator stay torchvision's.
def _forward(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: int) -> Tensor:
    *pairs, groups, offset_groups, use_mask = geometry
    stride, padding, dilation = _pairs(pairs)
    used = mask if use_mask else None
    _check_dtypes(input, weight, offset, used)
    same = bias.dtype == input.dtype
    check(input, offset, weight, bias if same else None, used, stride, padding, dilation, "paper")
    _check_groups(input, weight, offset, groups, offset_groups)
    out = op.forward(input, offset, weight, bias if same else None, used, stride, padding, dilation, "paper")
    return out if same else out + bias.view(1, -1, 1, 1)  # which promotes the dtype, as torchvision's kernel does


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: int
) -> tuple[Tensor, ...]:
    *pairs, _, _, use_mask = geometry
    used = mask if use_mask else None
    _check_dtypes(input, weight, offset, used)
    grads = op.backward(grad.to(input.dtype), input, offset, weight, used, *_pairs(pairs), "paper")
    grad_input, grad_offset, grad_weight, grad_mask = grads
    grad_bias = grad.sum((0, 2, 3)).to(bias.dtype)
    return grad_input, grad_weight, grad_offset, grad_mask if use_mask else torch.zeros_like(mask), grad_bias


def _check_dtypes(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None) -> None:
    """Refuse the dtypes that torchvision's kernel refuses."""
    if input.dtype not in _dtypes:
        raise ArgumentTypeError(f"torchvision's deform_conv2d is not implemented for {input.dtype} on the CPU")
    for name, value in (("weight", weight), ("offset", offset), ("mask", mask)):
        if value is not None and value.dtype != input.dtype:
            raise ArgumentTypeError(f"{name} has dtype {value.dtype} and input {input.dtype}: use one dtype")


def _check_groups(input: Tensor, weight: Tensor, offset: Tensor, groups: int, offset_groups: int) -> None:
    channels = 2 * offset_groups * weight.shape[2] * weight.shape[3]
    if input.shape[1] != groups * weight.shape[1] or offset.shape[1] != channels:
        raise ShapeError(
            f"{groups} groups and {offset_groups} offset groups do not go with input {list(input.shape)}, weight "
            f"{list(weight.shape)} and offset {list(offset.shape)}"
        )


def _taken_dtypes() -> frozenset[torch.dtype]:
    """The dtypes that torchvision's own CPU kernel accepts, which depend on its version."""
    import torchvision

    taken = set()
    for dtype in FLOATING:
        one = torch.zeros(1, 1, 1, 1, dtype=dtype)
        with contextlib.suppress(RuntimeError), torch.autocast("cpu", enabled=False), torch.no_grad():
            torchvision.ops.deform_conv2d(one, one.expand(1, 2, 1, 1), one)
            taken.add(dtype)
    return frozenset(taken)


def _pairs(values: list[int]) -> list[tuple[int, int]]:
    """Stride, padding and dilation as pairs."""
    return [(values[i], values[i + 1]) for i in (0, 2, 4)]
