"""RoI pooling, plain and deformable, with or without position sensitivity: functions, documentation, checks."""

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
    """RoI pooling by averages (Dai et al. 2017, equation 5).

    Args:
        input: `[B, C, H, W]`; float64, float32, float16 or bfloat16.
        rois: `[R, 5]` lines (image, x0, y0, x1, y1), or a list of `[L, 4]`, one an image, as torchvision takes
            them: image pixels, x1 and y1 at the far edge.
        output_size: bins (vertical, horizontal), or one int for both.
        spatial_scale: cells of the map per image pixel, 1/16 for a map of stride 16.
        sampling: `"paper"`: the RoI is snapped to cells, `x = round(x0 * spatial_scale)` and
            `w = max(round(x1 * spatial_scale) - x, 1)`; bin i averages the cells of the map with
            `floor(i * w / k) <= p < ceil((i + 1) * w / k)`. These are the bins of
            torchvision.ops.ps_roi_pool, which however never reads the last row and column of the map. A RoI that
            touches the map (`x0 * spatial_scale <= W` and `x1 >= 0`, likewise y) holds a cell of it whatever the
            rounding: `x` is at most W - 1, and `round(x1 * spatial_scale)` is taken as at least 1.
            `"authors"`: the released sampled operator: corners rounded in image pixels, the far pixel included,
            half a cell back, and `sample_per_part` squared bilinear samples a bin.
        sample_per_part: samples a bin and axis of the `"authors"` sampling.

    Returns:
        `[R, C, Ph, Pw]`. A bin without cells, as of a RoI that does not touch the map, is zero.

    Gradients go to the input; RoIs have none. Gradients can be differentiated again, to any order.

    Raises:
        ValueError, TypeError: naming the argument, what came and what was expected. Shapes and values are checked
            before dtypes. Each of these errors is also a RuntimeError, as torchvision's are.
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
    """Deformable RoI pooling (Dai et al. 2017, equation 6): the bins of `roi_pool`, each moved.

    Bin (i, j) of a RoI of w x h cells moves by `gamma * offset * (w, h)`. The order is **x before y**, unlike
    the convolution's:

    | offset channel | meaning |
    | --- | --- |
    | 0 | horizontal, in parts of the RoI's width, to the right |
    | 1 | vertical, in parts of the RoI's height, down |

    Args:
        input, rois, output_size, spatial_scale, sampling, sample_per_part: as for `roi_pool`.
        offset: `[R, 2, Qh, Qw]`, normalised by the RoI's size; usually Qh x Qw is the output size, else bin
            (i, j) takes part (floor(i Qh / Ph), floor(j Qw / Pw)). With more channels, `[R, 2 * T, Qh, Qw]`,
            class t moves C / T consecutive channels. None moves nothing.
        gamma: the scale of the offsets, 0.1 in the paper.

    Returns:
        `[R, C, Ph, Pw]`. With `"paper"` sampling each moved cell is read bilinearly, zero outside the map, and
        the sum is divided by the number of cells in the bin before it moved. With `"authors"` samples more than
        half a cell outside the map are left out of the average.

    Gradients go to input and offset (equation 8); at cell centres the offset's gradient is the one from the
    right (and, for `"authors"`, zero there, as in the released operator). An offset of any size or infinity reads
    zero outside the map; a NaN offset makes its bin NaN, unless that reads no cell whatever the offset.
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
    """Position-sensitive RoI pooling (R-FCN, Dai et al. 2016): bin (i, j) reads score maps of its own.

    Args:
        input: `[B, C * Gh * Gw, H, W]`; output channel c of group (u, v) is input channel
            `(c * Gh + u) * Gw + v`.
        rois, output_size, spatial_scale: as for `roi_pool`.
        sampling: `"paper"`: the bins of `roi_pool`.
            `"authors"`: the released plain operator: corners rounded in image pixels, the far pixel included,
            bins of whole cells.
        group_size: channel groups (Gh, Gw); the output size by default. Bin i belongs to group
            floor(i * Gh / Ph).

    Returns:
        `[R, C, Ph, Pw]`.
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
        input, rois, output_size, spatial_scale, group_size: as for `ps_roi_pool`.
        offset: `[R, 2 * T, Qh, Qw]`, normalised by the RoI's size, **x before y**: channel 2 t is the
            horizontal and 2 t + 1 the vertical offset of class t. T = C is class-aware, T = 1 class-agnostic;
            otherwise class t moves C / T consecutive output channels. None moves nothing.
        gamma: the scale of the offsets, 0.1 in the paper.
        sampling, sample_per_part: as for `roi_pool` and `deform_roi_pool`.

    Returns:
        `[R, C, Ph, Pw]`.
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
    """The arguments that torch.overrides looks at: tensors, and what stands in for them, as in tracing by torch.fx."""
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
    """One list of boxes an image as lines (image, x0, y0, x1, y1)."""
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
    """The lists of boxes by their names in messages."""
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
