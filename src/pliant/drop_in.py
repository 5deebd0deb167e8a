"""torchvision's deformable convolution on Pliant's kernels."""

from __future__ import annotations

import warnings
from types import TracebackType

import torch
from torch import Tensor

from pliant.ops import _native, deform_conv2d

_library: torch.library.Library | None = None
_patches = 0


class patch_torchvision:
    """Run torchvision's `deform_conv2d` on Pliant's compiled kernels, for tensors on the CPU.

    The dispatcher's kernels of `torchvision::deform_conv2d` and of its backward are replaced, so whatever reaches
    that operator is served: `torchvision.ops.deform_conv2d`, `torchvision.ops.DeformConv2d`, models that were
    scripted, traced, exported or compiled, before or after. Other devices keep torchvision's kernels.

    For good, or for a while:

        pliant.patch_torchvision()
        with pliant.patch_torchvision():
            ...

    Calls may be nested; torchvision's own kernels return when every one is undone.

    Raises:
        RuntimeError: if the compiled kernels are not installed: the reference would be no gain.
    """

    def __init__(self) -> None:
        global _patches
        if reason := _native.why_not():
            raise RuntimeError(f"patch_torchvision() would gain nothing: {reason}")
        _patches += 1
        self._active = True
        if _library is None:
            _install()

    def undo(self) -> None:
        """Take this patch back; a second time does nothing."""
        global _patches
        if not self._active:
            return
        self._active = False
        _patches -= 1
        if _patches == 0:
            _remove()

    def __enter__(self) -> patch_torchvision:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _install() -> None:
    global _library
    import torchvision  # noqa: F401  (registers the operators)

    library = torch.library.Library("torchvision", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced is the purpose
        warnings.simplefilter("ignore", UserWarning)
        library.impl("deform_conv2d", _forward, "CPU")
        library.impl("_deform_conv2d_backward", _backward, "CPU")
    _library = library


def _remove() -> None:
    global _library
    if _library is not None:
        _library._destroy()
    _library = None


# torchvision's order of arguments; it hands a zero bias where there is none, and an empty mask.
def _forward(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: int) -> Tensor:
    *pairs, _, _, use_mask = geometry
    stride, padding, dilation = _pairs(pairs)
    return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask if use_mask else None)


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *geometry: int
) -> tuple[Tensor, ...]:
    *pairs, _, _, use_mask = geometry
    used = mask if use_mask else None
    grads = torch.ops.pliant.deform_conv2d_backward(grad, input, offset, weight, used, *_pairs(pairs), "paper")
    grad_input, grad_offset, grad_weight, grad_mask = grads
    grad_bias = grad.sum((0, 2, 3)).to(bias.dtype)
    return grad_input, grad_weight, grad_offset, grad_mask if use_mask else torch.zeros_like(mask), grad_bias


def _pairs(values: list[int]) -> list[tuple[int, int]]:
    """Stride, padding and dilation."""
    return [(values[i], values[i + 1]) for i in (0, 2, 4)]
