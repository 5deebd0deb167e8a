"""Multi-scale deformable attention: the public function, its documentation and its checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pliant.ops import _checks, _onnx
from pliant.ops.ms_deform_attn import decomposed, op
from pliant.ops.ms_deform_attn.levels import shapes_of, starts_of


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention between its linear layers (Zhu et al., Deformable DETR, 2021, equation 3).

    Each head of a query reads P points in each of L maps bilinearly, and sums them with its attention weights.
    A location (x, y) is relative to the map: (0, 0) is the upper left corner of the first cell and (1, 1) the lower
    right corner of the last one. The map is zero outside.

    Args:
        value: cells of all maps `[N, S, M, D]`, with M heads of D channels, in float64, float32, float16 or bfloat16;
            half types are computed in float32.
        spatial_shapes: heights and widths of the maps `[L, 2]`, as integers; or a sequence of such pairs. To export to
            ONNX, pass a sequence.
        level_start_index: row of `value` at which each map starts `[L]`, as integers. None if each map starts where the
            one before it ends.
        sampling_locations: locations `[N, Q, M, L, P, 2]`, **x before y**, unbounded.
        attention_weights: factors `[N, Q, M, L, P]`. They are used as given, without a softmax.

    Returns:
        The sums `[N, Q, M * D]`, in the dtype of the value.

    Raises:
        ValueError: if a shape, device or value is wrong. The message names the argument, what it expected and what it
            got. On a GPU the numbers of the maps are not checked, because the host would wait for the device: a map
            that does not lie in the rows of `value` gives NaN.
        TypeError: if a type or dtype is wrong.

    Gradients flow to value, locations and weights. Where a location falls exactly on a cell's centre, its gradient is
    the one-sided gradient from the right and from below. Gradients can be differentiated again, to any order. Samples
    outside the map, also at infinite locations, are zero and have no gradient. A NaN location makes exactly its own
    head of its own query NaN.

    Examples:
        >>> shapes = [(20, 30), (10, 15)]
        >>> value = torch.rand(2, 20 * 30 + 10 * 15, 8, 32)
        >>> locations = torch.rand(2, 100, 8, 2, 4, 2)
        >>> weights = torch.rand(2, 100, 8, 2, 4).flatten(3).softmax(-1).unflatten(3, (2, 4))
        >>> pliant.ops.ms_deform_attn(value, shapes, None, locations, weights).shape
        torch.Size([2, 100, 256])
    """
    tensors = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if has_torch_function(tensors):
        return handle_torch_function(ms_deform_attn, tensors, *tensors)  # type: ignore[no-any-return]
    _check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if _onnx.exporting():
        if isinstance(spatial_shapes, Tensor) or level_start_index is not None:
            raise _checks.ArgumentError(
                "to capture ms_deform_attn for ONNX, spatial_shapes must be a sequence of pairs and level_start_index "
                "None: the format has no maps whose sizes are values"
            )
        return decomposed.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes = shapes_of(spatial_shapes, value.device)
    if level_start_index is None:
        level_start_index = starts_of(spatial_shapes)
    return op.call(  # type: ignore[no-any-return]
        value, spatial_shapes.long(), level_start_index.long(), sampling_locations, attention_weights
    )


def _check(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    _checks.tensor("value", value, 4)
    _checks.tensor("sampling_locations", sampling_locations, 6)
    _checks.tensor("attention_weights", attention_weights, 5)
    images, _, heads, channels = value.shape
    levels, points = attention_weights.shape[3:]
    expected = [images, attention_weights.shape[1], heads, levels, points]
    if list(attention_weights.shape) != expected:
        raise _checks.ShapeError(
            f"attention_weights must have shape {['N', 'Q', 'M', 'L', 'P']} with N = {images} and M = {heads} of "
            f"value {list(value.shape)}, got {list(attention_weights.shape)}"
        )
    if list(sampling_locations.shape) != [*expected, 2]:
        raise _checks.ShapeError(
            f"sampling_locations must have shape {[*expected, 2]} (that of attention_weights, and 2), got "
            f"{list(sampling_locations.shape)}"
        )
    if levels < 1 or channels < 1 or heads < 1:
        raise _checks.ShapeError(
            f"there must be a level, a head and a channel, got value {list(value.shape)} and attention_weights "
            f"{list(attention_weights.shape)}"
        )
    _check_levels(spatial_shapes, level_start_index, levels)
    shapes = spatial_shapes if isinstance(spatial_shapes, Tensor) else None
    _checks.same_device(
        value=value,
        spatial_shapes=shapes,
        level_start_index=level_start_index,
        sampling_locations=sampling_locations,
        attention_weights=attention_weights,
    )
    _checks.same_dtype(value=value, sampling_locations=sampling_locations, positions=True)
    _checks.same_dtype(value=value, attention_weights=attention_weights, positions=True)


def _check_levels(
    spatial_shapes: Tensor | Sequence[tuple[int, int]], level_start_index: Tensor | None, levels: int
) -> None:
    if isinstance(spatial_shapes, Tensor):
        if list(spatial_shapes.shape) != [levels, 2]:
            raise _checks.ShapeError(f"spatial_shapes must have shape {[levels, 2]}, got {list(spatial_shapes.shape)}")
        _check_integers("spatial_shapes", spatial_shapes)
    else:
        if len(spatial_shapes) != levels:
            raise _checks.ShapeError(f"spatial_shapes must have {levels} pairs, got {len(spatial_shapes)}")
        for index, pair in enumerate(spatial_shapes):
            _checks.pair(f"spatial_shapes[{index}]", pair, least=1)
    if level_start_index is not None:
        _checks.tensor("level_start_index", level_start_index, 1)
        if level_start_index.shape[0] != levels:
            raise _checks.ShapeError(
                f"level_start_index must have shape {[levels]}, got {list(level_start_index.shape)}"
            )
        _check_integers("level_start_index", level_start_index)


def _check_integers(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in (torch.int64, torch.int32):
        raise _checks.ArgumentTypeError(f"{name} must have dtype int64 or int32, got {tensor.dtype}")
