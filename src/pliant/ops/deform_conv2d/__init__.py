"""Deformable convolution: the public function, with its documentation and argument checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pliant.ops import _checks, _onnx
from pliant.ops._transforms import PLAIN
from pliant.ops.deform_conv2d import op

BORDERS = ("paper", "authors")
_MOST_PASSED = 4096


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = (1, 1),
    padding: int | tuple[int, int] = (0, 0),
    dilation: int | tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
    border: str = "paper",  # not keyword-only, or torch.jit.script refuses the function
) -> Tensor:
    """Deformable convolution (Dai et al. 2017, equations 2 to 4), modulated if `mask` is given (Zhu et al. 2019).

    Tap (i, j) of the kernel reads the input bilinearly at its regular position plus an offset:

        y = ho * stride_h - padding_h + i * dilation_h + offset_y[ho, wo]
        x = wo * stride_w - padding_w + j * dilation_w + offset_x[ho, wo]

    The channels of `offset` and `mask` are ordered by offset group g, then by tap. In `offset`, **y comes before x**:

    | channel | meaning |
    | --- | --- |
    | `offset[:, 2 * ((g * kh + i) * kw + j)]` | vertical offset in cells, positive downwards |
    | `offset[:, 2 * ((g * kh + i) * kw + j) + 1]` | horizontal offset in cells, positive to the right |
    | `mask[:, (g * kh + i) * kw + j]` | factor of the sampled value |

    Args:
        input: input map `[B, C, H, W]` in float64, float32, float16 or bfloat16; half types are computed in float32.
            As in `torch.nn.functional.conv2d` the batch axis may be missing, then also from offset, mask and output.
        offset: offsets `[B, 2 * G * kh * kw, Ho, Wo]` in cells of the input map, unbounded. Its shape determines the
            number of offset groups G; each group moves C / G consecutive input channels.
        weight: filters `[O, C / groups, kh, kw]`. Its shape determines the number of groups.
        bias: bias `[O]`, or None.
        stride, padding, dilation: an int or a pair (vertical, horizontal), as in `torch.nn.functional.conv2d`.
        mask: factors `[B, G * kh * kw, Ho, Wo]`, or None. They are used as given, without a sigmoid.
        border: `"paper"` for equation 3, where the map is zero outside and a sample up to one cell beyond the border
            still reads it; `"authors"` for the authors' first released operator, where samples outside
            [0, H) x [0, W) are zero and the last row and column repeat up to that edge. Both agree at zero offsets.

    Returns:
        The output map `[B, O, Ho, Wo]`, in the dtype of the input.

    Raises:
        ValueError: if a shape, device or value is wrong. The message names the argument, what it expected and what it
            got.
        TypeError: if a type or dtype is wrong. Both errors are also RuntimeErrors, as torchvision's are.

    Gradients flow to input, offset, weight, bias and mask (equation 7). Where a sample falls exactly on a cell's
    centre, the gradient of the offset is the one-sided gradient from the right and from below, as in torchvision.
    Gradients can be differentiated again, to any order. Samples outside the map, also at infinite offsets, are zero and
    have no gradient. A NaN offset makes exactly the outputs that depend on it NaN.

    Examples:
        >>> input = torch.rand(2, 16, 20, 30)
        >>> weight = torch.rand(32, 16, 3, 3)
        >>> offset = torch.zeros(2, 2 * 3 * 3, 20, 30)
        >>> out = pliant.ops.deform_conv2d(input, offset, weight, padding=1)
        >>> out.shape
        torch.Size([2, 32, 20, 30])
        >>> torch.allclose(out, torch.nn.functional.conv2d(input, weight, padding=1), atol=1e-4)
        True
    """
    if not torch.jit.is_scripting():
        tensors = (input, offset, weight, bias, mask)
        if has_torch_function(tensors):  # also torch.fx, which records the call by its name
            return handle_torch_function(
                deform_conv2d, tensors, input, offset, weight, bias, stride, padding, dilation, mask, border
            )
        call = _described(tensors, stride, padding, dilation, border)
        if call is None or call not in _passed:
            check(input, offset, weight, bias, mask, stride, padding, dilation, border)
            if call is not None:
                _passed.add(call)
    unbatched = input.dim() == 3
    if unbatched:
        input, offset = input.unsqueeze(0), offset.unsqueeze(0)
        mask = None if mask is None else mask.unsqueeze(0)
    if isinstance(stride, int):
        stride = (stride, stride)
    if isinstance(padding, int):
        padding = (padding, padding)
    if isinstance(dilation, int):
        dilation = (dilation, dilation)
    if torch.jit.is_scripting():
        out = torch.ops.pliant.deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation, border)
    elif _onnx.exporting():
        out = _onnx.deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation, border)
    else:
        out = op.call(input, offset, weight, bias, mask, stride, padding, dilation, border)
    return out.squeeze(0) if unbatched else out


_passed: set[Any] = set()  # descriptions of calls that passed the checks, which look at nothing else


def _described(tensors: tuple[Tensor | None, ...], *options: Any) -> Any:
    """What the checks look at; None where sizes may be symbols."""
    if torch.compiler.is_compiling() or not all(tensor is None or type(tensor) in PLAIN for tensor in tensors):
        return None
    if len(_passed) > _MOST_PASSED:
        _passed.clear()
    described = (tensor is not None and (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
    return *described, repr(options)  # where 1 differs from 1.0 and True


def check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    border: str,
) -> None:
    """Raise an error if the operator does not take these arguments."""
    _checks.tensor("input", input, 3, 4)
    _checks.tensor("offset", offset, input.dim())
    _checks.tensor("weight", weight, 4)
    if bias is not None:
        _checks.tensor("bias", bias, 1)
    if mask is not None:
        _checks.tensor("mask", mask, input.dim())
    _checks.pair("stride", stride, least=1)
    _checks.pair("padding", padding, least=0)
    _checks.pair("dilation", dilation, least=1)
    _checks.choice("border", border, BORDERS)
    _check_channels(input, weight, bias)
    _check_maps(input, offset, weight, mask, stride, padding, dilation)
    _checks.same_device(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    _checks.same_dtype(input=input, weight=weight, bias=bias)
    _checks.same_dtype(input=input, offset=offset, positions=True)
    _checks.same_dtype(input=input, mask=mask, positions=True)


def _check_channels(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    (channels, height, width), (out_channels, per_group) = input.shape[-3:], weight.shape[:2]
    if any(
        size < 1 for size in (*weight.shape[2:], height, width)
    ):  # min() would compare one dynamic size with another
        raise _checks.ShapeError(
            f"kernel and map must not be empty, got weight {list(weight.shape)}, input {list(input.shape)}"
        )
    if per_group < 1 or channels < 1 or channels % per_group:
        raise _checks.ShapeError(
            f"weight.shape[1] must divide the {channels} channels of the input, got weight {list(weight.shape)}"
        )
    groups = channels // per_group
    if out_channels % groups:
        raise _checks.ShapeError(f"{out_channels} output channels do not divide into {groups} groups")
    if bias is not None and bias.shape[0] != out_channels:
        raise _checks.ShapeError(f"bias must have shape [{out_channels}], got {list(bias.shape)}")


def _check_maps(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
) -> None:
    taps = weight.shape[2] * weight.shape[3]
    batch, channels, offset_channels = list(input.shape[:-3]), input.shape[-3], offset.shape[-3]
    channel_axis = input.dim() - 3
    groups = offset_channels // (2 * taps)
    if groups == 0 or offset_channels % (2 * taps):
        raise _checks.ShapeError(
            f"the shape of the offset is not valid: offset.shape[{channel_axis}] must be a multiple of "
            f"2 * kh * kw = {2 * taps}, got offset {list(offset.shape)}"
        )
    if channels % groups:
        raise _checks.ShapeError(
            f"the shape of the offset gives {groups} offset groups, which must divide the {channels} "
            f"channels of the input; got offset {list(offset.shape)}"
        )
    size = [
        (length + 2 * pad - dilate * (kernel - 1) - 1) // step + 1
        for length, pad, dilate, kernel, step in zip(
            input.shape[-2:],
            _checks.as_pair(padding),
            _checks.as_pair(dilation),
            weight.shape[2:],
            _checks.as_pair(stride),
            strict=True,
        )
    ]
    if min(size) < 1:
        raise _checks.ShapeError(
            f"the kernel does not fit: input {list(input.shape)}, weight {list(weight.shape)}, padding {padding}, "
            f"dilation {dilation} and stride {stride} give an output of {size}"
        )
    if list(offset.shape) != [*batch, offset_channels, *size]:
        raise _checks.ShapeError(
            f"the shape of the offset must be {[*batch, offset_channels, *size]} (the batch of the input "
            f"and the size of the output), got {list(offset.shape)}"
        )
    if mask is not None and mask.shape[-3] != groups * taps:
        raise _checks.ShapeError(
            f"mask.shape[{channel_axis}] is not valid: {groups} offset groups of {taps} taps need {groups * taps} "
            f"channels, got mask {list(mask.shape)}"
        )
    if mask is not None and list(mask.shape) != [*batch, groups * taps, *size]:
        raise _checks.ShapeError(f"mask must have shape {[*batch, groups * taps, *size]}, got {list(mask.shape)}")
