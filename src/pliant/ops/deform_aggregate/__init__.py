"""Deformable aggregation: the public function, its documentation and its checks."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pliant.ops import _checks, _onnx
from pliant.ops.deform_aggregate import decomposed, op
from pliant.ops.deform_aggregate.geometry import Geometry


def deform_aggregate(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> Tensor:
    """Deformable aggregation, the core of DCNv3 (Wang et al., InternImage, 2023) and DCNv4 (Xiong et al., 2024).

    Each group of channels of an output cell is the sum of what its points read bilinearly, weighted by the mask. Unlike
    in a convolution, channels do not mix, and there are no filters. Point (i, j) in column i and row j of the kernel
    reads at

        y = ho * stride_h - padding_h + c_h + offset_scale * (j * dilation_h - c_h + offset_y[ho, wo])
        x = wo * stride_w - padding_w + c_w + offset_scale * (i * dilation_w - c_w + offset_x[ho, wo])

    where c = dilation * (kernel_size - 1) // 2 is the kernel's centre. Points are ordered **column by column**: point
    (i, j) is number `i * kh + j`. The input is zero outside.

    Args:
        input: input `[N, H, W, C]`, **channels last**, in float64, float32, float16 or bfloat16; half types are
            computed in float32.
        offset: offsets `[N, Ho, Wo, G, P, 2]` in cells, **x before y**, unbounded. Each of the G groups moves C / G
            consecutive channels; there are P = kh * kw points, or one less with `remove_center`.
        mask: factors `[N, Ho, Wo, G, P]`.
        kernel_size, stride, padding, dilation: an int or a pair (vertical, horizontal), as in
            `torch.nn.functional.conv2d`. They determine Ho and Wo.
        offset_scale: factor of the offsets and of the kernel's extent around its centre.
        remove_center: leave out the point in the middle of the kernel, whose sides must be odd. The points behind it
            move up by one.
        softmax: normalise the mask by a softmax over the points of each group. Otherwise it is used as given, as DCNv4
            does.

    Returns:
        The sums `[N, Ho, Wo, C]`, in the dtype of the input.

    Raises:
        ValueError: if a shape, device or value is wrong. The message names the argument, what it expected and what it
            got.
        TypeError: if a type or dtype is wrong.

    Gradients flow to input, offset and mask. Where a sample falls exactly on a cell's centre, the gradient of the
    offset is the one-sided gradient from the right and from below. Gradients can be differentiated again, to any order.
    Samples outside the map, also at infinite offsets, are zero and have no gradient. A NaN offset makes exactly its own
    group of its own output cell NaN.

    Examples:
        >>> input = torch.rand(2, 20, 30, 64)
        >>> offset = torch.randn(2, 20, 30, 4, 9, 2)
        >>> mask = torch.rand(2, 20, 30, 4, 9)
        >>> pliant.ops.deform_aggregate(input, offset, mask, kernel_size=3, padding=1, softmax=True).shape
        torch.Size([2, 20, 30, 64])
    """
    tensors = (input, offset, mask)
    if has_torch_function(tensors):
        return handle_torch_function(  # type: ignore[no-any-return]
            deform_aggregate,
            tensors,
            *tensors,
            kernel_size,
            stride,
            padding,
            dilation,
            offset_scale,
            remove_center,
            softmax,
        )
    geometry = _geometry(kernel_size, stride, padding, dilation, offset_scale, remove_center)
    _check(input, offset, mask, geometry)
    if softmax:
        mask = mask.softmax(-1)
    if _onnx.exporting():
        return decomposed.deform_aggregate(input, offset, mask, geometry)
    return op.call(input, offset, mask, *geometry)  # type: ignore[no-any-return]


def _geometry(
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    offset_scale: float,
    remove_center: bool,
) -> Geometry:
    _checks.pair("kernel_size", kernel_size, least=1)
    _checks.pair("stride", stride, least=1)
    _checks.pair("padding", padding, least=0)
    _checks.pair("dilation", dilation, least=1)
    _checks.scale("offset_scale", offset_scale)
    kernel = _checks.as_pair(kernel_size)
    if remove_center and not (kernel[0] % 2 and kernel[1] % 2):
        raise _checks.ArgumentError(f"with remove_center, kernel_size must be odd, got {kernel_size}")
    return Geometry(
        kernel,
        _checks.as_pair(stride),
        _checks.as_pair(padding),
        _checks.as_pair(dilation),
        float(offset_scale),
        bool(remove_center),
    )


def _check(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> None:
    _checks.tensor("input", input, 4)
    _checks.tensor("offset", offset, 6)
    _checks.tensor("mask", mask, 5)
    images, height, width, channels = input.shape
    if height < 1 or width < 1 or channels < 1:
        raise _checks.ShapeError(f"input [N, H, W, C] must have a cell and a channel, got {list(input.shape)}")
    groups, points = mask.shape[3:]
    if groups < 1 or channels % groups:
        raise _checks.ShapeError(
            f"the groups of the mask must divide the {channels} channels of the input [N, H, W, C], got mask "
            f"{list(mask.shape)}"
        )
    if points < 1 or points != geometry.points:
        without = ", without its centre," if geometry.remove_center else ""
        raise _checks.ShapeError(
            f"mask must have {geometry.points} points, for a kernel of {list(geometry.kernel_size)}{without} "
            f"got mask {list(mask.shape)}"
        )
    size = geometry.out_size((height, width))
    if min(size) < 1:
        raise _checks.ShapeError(
            f"the kernel does not fit: input {list(input.shape)}, kernel_size {geometry.kernel_size}, padding "
            f"{geometry.padding}, dilation {geometry.dilation} and stride {geometry.stride} give an output of {size}"
        )
    expected = [images, *size, groups, points]
    if list(mask.shape) != expected:
        raise _checks.ShapeError(f"mask must have shape {expected}, got {list(mask.shape)}")
    if list(offset.shape) != [*expected, 2]:
        raise _checks.ShapeError(
            f"offset must have shape {[*expected, 2]} (that of the mask, and 2), got {list(offset.shape)}"
        )
    _checks.same_device(input=input, offset=offset, mask=mask)
    _checks.same_dtype(input=input, offset=offset, positions=True)
    _checks.same_dtype(input=input, mask=mask, positions=True)
