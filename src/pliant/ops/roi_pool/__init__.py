"""RoI pooling, plain and deformable, position-sensitive or not: public functions, documentation and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pliant.ops import _checks, _onnx
from pliant.ops.roi_pool import decomposed, op
from pliant.ops.roi_pool.reference import Pooling

SAMPLINGS = ("paper", "authors")


def roi_pool(
    input: Tensor,
    rois: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling: str = "paper",
    sample_per_part: int = 4,
) -> Tensor:
    """Average RoI pooling (Dai et al. 2017, equation 5).

    Args:
        input: input map `[B, C, H, W]` in float64, float32, float16 or bfloat16.
        rois: rows (image, x0, y0, x1, y1) `[R, 5]`, or one tensor `[L, 4]` per image as in torchvision. Coordinates are
            image pixels; x1 and y1 are the far edges.
        output_size: number of bins (vertical, horizontal), or one int for both.
        spatial_scale: cells of the map per image pixel, 1/16 for a map of stride 16.
        sampling: where the bins sample.
            `"paper"` rounds the RoI to cells, `x = round(x0 * spatial_scale)` and
            `w = max(round(x1 * spatial_scale) - x, 1)`; bin i averages the cells of the map with
            `floor(i * w / k) <= p < ceil((i + 1) * w / k)`. These are the bins of `torchvision.ops.ps_roi_pool`, which
            however never reads the last row and column of the map. A RoI that touches the map
            (`x0 * spatial_scale <= W` and `x1 >= 0`, likewise for y) always contains a cell of it: `x` is at most
            W - 1 and `round(x1 * spatial_scale)` counts as at least 1.
            `"authors"` follows the authors' released operator: corners are rounded in image pixels, the last pixel
            belongs to the RoI, the map is shifted by half a cell, and a bin averages `sample_per_part ** 2` bilinear
            samples.
        sample_per_part: samples per bin and axis of the `"authors"` sampling.

    Returns:
        The pooled features `[R, C, Ph, Pw]`. Bins without cells are zero, as in a RoI that does not touch the map.

    Raises:
        ValueError: if a shape, device or value is wrong. The message names the argument, what it expected and what it
            got.
        TypeError: if a type or dtype is wrong. Both errors are also RuntimeErrors, as torchvision's are.

    Gradients flow to the input only. Gradients can be differentiated again, to any order.

    Examples:
        >>> features = torch.arange(16.0).view(1, 1, 4, 4)
        >>> rois = torch.tensor([[0, 0.0, 0.0, 64.0, 64.0]])  # image, x0, y0, x1, y1
        >>> pliant.ops.roi_pool(features, rois, output_size=2, spatial_scale=1 / 16)
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    if not torch.jit.is_scripting():
        tensors = _tensors(input, rois, None)
        if has_torch_function(tensors):
            return handle_torch_function(
                roi_pool, tensors, input, rois, output_size, spatial_scale, sampling, sample_per_part
            )
    return _pool(input, rois, None, output_size, (1, 1), spatial_scale, 0.0, sampling, sample_per_part)


def deform_roi_pool(
    input: Tensor,
    rois: Tensor | list[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
    sampling: str = "paper",
    sample_per_part: int = 4,
) -> Tensor:
    """Deformable RoI pooling (Dai et al. 2017, equation 6): the bins of `roi_pool`, each moved by an offset.

    Bin (i, j) of a RoI of w x h cells moves by `gamma * offset * (w, h)`. In `offset`, **x comes before y**, unlike in
    `deform_conv2d`:

    | channel | meaning |
    | --- | --- |
    | `offset[:, 0]` | horizontal offset in fractions of the RoI's width, positive to the right |
    | `offset[:, 1]` | vertical offset in fractions of the RoI's height, positive downwards |

    Args:
        input, rois, output_size, spatial_scale, sampling, sample_per_part: see `roi_pool`.
        offset: offsets `[R, 2, Qh, Qw]`, normalised by the RoI's size. Usually Qh x Qw is the output size; otherwise
            bin (i, j) takes part (floor(i * Qh / Ph), floor(j * Qw / Pw)). In `[R, 2 * T, Qh, Qw]`, class t moves
            C / T consecutive channels. None moves nothing.
        gamma: scale of the offsets, 0.1 in the paper.

    Returns:
        The pooled features `[R, C, Ph, Pw]`. With `"paper"` sampling each moved cell is read bilinearly, zero outside
        the map, and the sum is divided by the number of cells in the bin before it moved. With `"authors"` sampling,
        samples more than half a cell outside the map are left out of the average.

    Raises:
        ValueError, TypeError: see `roi_pool`.

    Gradients flow to input and offset (equation 8). At cell centres the gradient of the offset is the one from the
    right; with `"authors"` sampling it is zero there, as in the released operator. Offsets that lead outside the map,
    infinite ones included, read zero. A NaN offset makes its bin NaN, unless the bin contains no cell.

    Examples:
        >>> features = torch.arange(16.0).view(1, 1, 4, 4)
        >>> rois = torch.tensor([[0, 0.0, 0.0, 32.0, 32.0]])  # 2 x 2 cells
        >>> offset = torch.zeros(1, 2, 1, 1)
        >>> offset[:, 0] = 5.0  # gamma * 5 * 2 = one cell to the right
        >>> plain = pliant.ops.roi_pool(features, rois, 2, 1 / 16)
        >>> pliant.ops.deform_roi_pool(features, rois, offset, 2, 1 / 16) - plain
        tensor([[[[1., 1.],
                  [1., 1.]]]])
    """
    if not torch.jit.is_scripting():
        tensors = _tensors(input, rois, offset)
        if has_torch_function(tensors):
            return handle_torch_function(
                deform_roi_pool,
                tensors,
                input,
                rois,
                offset,
                output_size,
                spatial_scale,
                gamma,
                sampling,
                sample_per_part,
            )
    return _pool(input, rois, offset, output_size, (1, 1), spatial_scale, gamma, sampling, sample_per_part)


def ps_roi_pool(
    input: Tensor,
    rois: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling: str = "paper",
    group_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Position-sensitive RoI pooling (R-FCN, Dai et al. 2016): every bin reads its own score maps.

    Args:
        input: score maps `[B, C * Gh * Gw, H, W]`. Output channel c of group (u, v) reads input channel
            `(c * Gh + u) * Gw + v`.
        rois, output_size, spatial_scale: see `roi_pool`.
        sampling: `"paper"` for the bins of `roi_pool`; `"authors"` for the authors' released plain operator, with
            corners rounded in image pixels, the last pixel included, and bins of whole cells.
        group_size: number of channel groups (Gh, Gw), by default the output size. Bin i reads group
            floor(i * Gh / Ph).

    Returns:
        The pooled scores `[R, C, Ph, Pw]`.

    Raises:
        ValueError, TypeError: see `roi_pool`.

    Examples:
        >>> scores = torch.rand(1, 5 * 3 * 3, 10, 10)  # five classes, 3 x 3 bins
        >>> rois = torch.tensor([[0, 16.0, 16.0, 112.0, 80.0]])
        >>> pliant.ops.ps_roi_pool(scores, rois, 3, 1 / 16).shape
        torch.Size([1, 5, 3, 3])
    """
    if not torch.jit.is_scripting():
        tensors = _tensors(input, rois, None)
        if has_torch_function(tensors):
            return handle_torch_function(
                ps_roi_pool, tensors, input, rois, output_size, spatial_scale, sampling, group_size
            )
    groups = output_size if group_size is None else group_size
    return _pool(input, rois, None, output_size, groups, spatial_scale, 0.0, sampling, 1, "authors_whole_cells")


def deform_ps_roi_pool(
    input: Tensor,
    rois: Tensor | list[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
    sampling: str = "paper",
    group_size: int | tuple[int, int] | None = None,
    sample_per_part: int = 4,
) -> Tensor:
    """Deformable position-sensitive RoI pooling (Dai et al. 2017, equation 6 on score maps).

    Args:
        input, rois, output_size, spatial_scale, group_size: see `ps_roi_pool`.
        offset: offsets `[R, 2 * T, Qh, Qw]`, normalised by the RoI's size, **x before y**: channels 2 t and 2 t + 1 are
            the horizontal and vertical offset of class t. T = C is class-aware, T = 1 class-agnostic; in general
            class t moves C / T consecutive output channels. None moves nothing.
        gamma: scale of the offsets, 0.1 in the paper.
        sampling, sample_per_part: see `roi_pool` and `deform_roi_pool`.

    Returns:
        The pooled scores `[R, C, Ph, Pw]`.

    Raises:
        ValueError, TypeError: see `roi_pool`.

    Examples:
        >>> scores = torch.rand(1, 5 * 3 * 3, 10, 10)  # five classes, 3 x 3 bins
        >>> rois = torch.tensor([[0, 16.0, 16.0, 112.0, 80.0]])
        >>> offset = torch.zeros(1, 2 * 5, 3, 3)  # class-aware
        >>> moved = pliant.ops.deform_ps_roi_pool(scores, rois, offset, 3, 1 / 16)
        >>> torch.allclose(moved, pliant.ops.ps_roi_pool(scores, rois, 3, 1 / 16))
        True
    """
    if not torch.jit.is_scripting():
        tensors = _tensors(input, rois, offset)
        if has_torch_function(tensors):
            return handle_torch_function(
                deform_ps_roi_pool,
                tensors,
                input,
                rois,
                offset,
                output_size,
                spatial_scale,
                gamma,
                sampling,
                group_size,
                sample_per_part,
            )
    groups = output_size if group_size is None else group_size
    return _pool(input, rois, offset, output_size, groups, spatial_scale, gamma, sampling, sample_per_part)


def _tensors(input: Tensor, rois: Tensor | list[Tensor], offset: Tensor | None) -> tuple[Any, ...]:
    """The arguments that `torch.overrides` inspects: tensors, and their stand-ins in a `torch.fx` trace."""
    return input, *(rois if isinstance(rois, Sequence) else (rois,)), offset


def _pool(
    input: Tensor,
    rois: Tensor | list[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    group_size: int | tuple[int, int],
    spatial_scale: float,
    gamma: float,
    sampling: str,
    sample_per_part: int,
    authors_rule: str = "authors_samples",
) -> Tensor:
    if not torch.jit.is_scripting():
        _check(input, rois, offset, output_size, group_size, spatial_scale, sampling, sample_per_part)
    lines = rois if isinstance(rois, Tensor) else _lines(input, rois)
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    groups = (group_size, group_size) if isinstance(group_size, int) else group_size
    rule = "whole_cells" if sampling == "paper" else authors_rule
    if torch.jit.is_scripting():
        return torch.ops.pliant.roi_pool(
            input, lines, offset, bins, groups, spatial_scale, gamma, rule, sample_per_part
        )
    if _onnx.exporting():
        pooling = Pooling(bins, groups, spatial_scale, gamma, rule, sample_per_part)
        return decomposed.roi_pool(input, lines, offset, pooling)
    return op.call(input, lines, offset, bins, groups, spatial_scale, gamma, rule, sample_per_part)


def _lines(input: Tensor, rois: list[Tensor]) -> Tensor:
    """One tensor of boxes per image as rows (image, x0, y0, x1, y1)."""
    lines = [torch.cat((torch.full_like(boxes[:, :1], i), boxes), dim=1) for i, boxes in enumerate(rois)]
    return torch.cat(lines) if len(lines) > 0 else input.new_zeros([0, 5])


def _check(
    input: Tensor,
    rois: Tensor | list[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    group_size: int | tuple[int, int],
    spatial_scale: float,
    sampling: str,
    sample_per_part: int,
) -> None:
    _checks.tensor("input", input, 4)
    _checks.pair("output_size", output_size, least=1)
    _checks.pair("group_size", group_size, least=1)
    _checks.choice("sampling", sampling, SAMPLINGS)
    _checks.count("sample_per_part", sample_per_part)
    _checks.scale("spatial_scale", spatial_scale)
    lists = {"rois": rois} if isinstance(rois, Tensor) else _check_lists(input, rois)
    if isinstance(rois, Tensor) and (rois.dim() != 2 or rois.shape[1] != 5):
        raise _checks.ShapeError(f"rois must have shape [R, 5] (image, x0, y0, x1, y1), got {list(rois.shape)}")
    group_pair = _checks.as_pair(group_size)
    groups = group_pair[0] * group_pair[1]
    if input.shape[1] == 0 or input.shape[1] % groups or input.shape[2] < 1 or input.shape[3] < 1:
        raise _checks.ShapeError(
            f"input must be a map with a multiple of {groups} channels (group_size {list(group_pair)}), "
            f"got shape {list(input.shape)}"
        )
    if offset is not None:
        _check_offset(sum(boxes.shape[0] for boxes in lists.values()), offset, input.shape[1] // groups)
    _checks.same_device(input=input, **lists, offset=offset)
    _checks.same_dtype(input=input, **lists, offset=offset, positions=True)


def _check_lists(input: Tensor, rois: list[Tensor]) -> dict[str, Tensor]:
    """The tensors of boxes, by the names that messages give them."""
    if not isinstance(rois, Sequence):
        raise _checks.ArgumentTypeError(f"rois must be a Tensor or a list of them, got {type(rois).__name__}")
    if len(rois) != input.shape[0]:
        raise _checks.ShapeError(f"rois must hold one Tensor an image ({input.shape[0]}), got {len(rois)}")
    lists = {f"rois[{i}]": boxes for i, boxes in enumerate(rois)}
    for name, boxes in lists.items():
        if not isinstance(boxes, Tensor):
            raise _checks.ArgumentTypeError(f"{name} must be a Tensor, got {type(boxes).__name__}")
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise _checks.ShapeError(f"{name} must have shape [L, 4], got {list(boxes.shape)}")
    return lists


def _check_offset(lines: int, offset: Tensor, channels: int) -> None:
    _checks.tensor("offset", offset, 4)
    pairs = offset.shape[1] // 2
    if offset.shape[0] != lines or offset.shape[1] % 2 or pairs == 0 or channels % pairs:
        raise _checks.ShapeError(
            f"offset must have shape [{lines}, 2 * T, Qh, Qw] with T dividing the {channels} output "
            f"channels, got {list(offset.shape)}"
        )
    if offset.shape[2] < 1 or offset.shape[3] < 1:
        raise _checks.ShapeError(f"offset must have at least one part, got shape {list(offset.shape)}")
