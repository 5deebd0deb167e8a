"""Deformable convolution: the public function, its documentation and its checks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pliant.ops import _checks, _onnx
from pliant.ops.deform_conv2d import op

BORDERS = ("paper", "authors")


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
    """Deformable convolution (Dai et al. 2017, equations 2 to 4; with `mask`, Zhu et al. 2019).

    Every tap (i, j) of the kernel reads the input, bilinearly, at its regular place plus an offset of its own:

        y = ho * stride_h - padding_h + i * dilation_h + offset_y[ho, wo]
        x = wo * stride_w - padding_w + j * dilation_w + offset_x[ho, wo]

    Order of the channels, offset group g by offset group, tap by tap, **y before x**:

    | offset channel | meaning |
    | --- | --- |
    | `2 * ((g * kh + i) * kw + j)` | vertical offset, cells, down |
    | `2 * ((g * kh + i) * kw + j) + 1` | horizontal offset, cells, right |
    | mask channel `(g * kh + i) * kw + j` | factor of the sampled value |

    Args:
        input: `[B, C, H, W]`; float64, float32, float16 or bfloat16 (half types are computed in float32). As in
            `torch.nn.functional.conv2d`, the batch axis may be left out: of input, offset, mask and the result alike.
        offset: `[B, 2 * G * kh * kw, Ho, Wo]` in cells of the input map, unbounded. The number of offset groups
            G is read from this shape; each group serves C / G consecutive input channels.
        weight: `[O, C / groups, kh, kw]`; the number of groups is read from this shape.
        bias: `[O]` or None.
        stride, padding, dilation: an int, or a pair (vertical, horizontal), as for a convolution.
        mask: `[B, G * kh * kw, Ho, Wo]` or None, for the modulated operator; used as it is, without a sigmoid.
        border: `"paper"` (equation 3: the map is zero outside, sampled up to one cell beyond its border), or
            `"authors"`: the rule of the first released operator, nothing outside [0, H) x [0, W), and the last
            row and column repeated up to that edge. The two agree at zero offsets.

    Returns:
        `[B, O, Ho, Wo]`, of the input's dtype.

    Gradients go to input, offset, weight, bias and mask (equation 7). Where a sample lies exactly on a cell's
    centre the operator has a kink in the offset; its gradient is then the one from the right (and from below),
    as in torchvision. Gradients can be differentiated again, to any order.

    An offset that leads outside the map, infinity included, samples zero and has no gradient. A NaN offset
    makes the outputs that depend on it NaN, reads nothing out of bounds, and so shows where it came from.

    Raises:
        ValueError: for a wrong shape, device or value; the message names the argument, what came and what was
            expected.
        TypeError: for a wrong type or dtype. Shapes and values are checked first. Each of these errors is also a
            RuntimeError, as torchvision's are.
    """
    if not torch.jit.is_scripting():
        tensors = (input, offset, weight, bias, mask)
        if has_torch_function(tensors):  # also torch.fx, which records the call by its name
            return handle_torch_function(
                deform_conv2d, tensors, input, offset, weight, bias, stride, padding, dilation, mask, border
            )
        check(input, offset, weight, bias, mask, stride, padding, dilation, border)
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
    """Raise an error where the operator does not take these arguments."""
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
