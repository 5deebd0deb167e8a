"""How functions for multi-scale deformable attention take their arguments: by names, and as a small example shows."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.ops import _native, ms_deform_attn
from pliant.ops._checks import FLOATING

LOCATIONS = "sampling_locations"
_TENSORS = ("value", LOCATIONS, "attention_weights")
_SHAPES = ("value_spatial_shapes_list", "value_spatial_shapes_hw", "value_spatial_shapes", "spatial_shapes")
_COUNTS = "num_points_list"  # of each map, where points of all maps are in one axis
_IGNORED = ("self", "level_start_index", "value_level_start_index", "im2col_step")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A layout of the values: `[N, S, M, D]` (rows), or `[N, M, D, S]` with changes.

    Args:
        rows: whether the values are `[N, S, M, D]`.
        merged: whether images and heads are one axis.
        parts: whether each map is a tensor of its own.
        planes: whether such a map has two axes, height and width.
    """

    rows: bool = False
    merged: bool = False
    parts: bool = False
    planes: bool = False

    def wrap(self, value: Tensor, shapes: list[tuple[int, int]]) -> Any:
        """Values `[N, S, M, D]` in this layout."""
        if self.rows:
            return value
        value = value.permute(0, 2, 3, 1)
        value = value.flatten(0, 1) if self.merged else value
        if not self.parts:
            return value.contiguous()
        parts = value.split([height * width for height, width in shapes], -1)
        pairs = zip(parts, shapes, strict=True)
        return [(part.unflatten(-1, shape) if self.planes else part).contiguous() for part, shape in pairs]

    def unwrap(self, parts: Sequence[Tensor], heads: int) -> Tensor:
        """Values of this layout as `[N, S, M, D]`."""
        if self.rows:
            return parts[0]
        flat = [part.flatten(-2) if self.planes else part for part in parts]
        value = torch.cat(flat, -1) if self.parts else flat[0]
        return (value.unflatten(0, (-1, heads)) if self.merged else value).permute(0, 3, 1, 2)

    def parts_of(self, value: Any) -> Sequence[Tensor] | None:
        """The tensors of the values, or None if they are not in this layout."""
        if isinstance(value, Tensor) == self.parts:
            return None
        parts = value if self.parts else (value,)
        return parts if all(part.dim() == 4 - self.merged + self.planes for part in parts) else None


_LAYOUTS = (
    _Layout(rows=True),
    *(_Layout(merged=merged, parts=parts) for parts in (False, True) for merged in (False, True)),
    *(_Layout(merged=merged, parts=True, planes=True) for merged in (False, True)),
)


def takes_attention(function: Callable[..., Any]) -> bool:
    """Whether a function has the parameters of multi-scale deformable attention."""
    names = inspect.signature(function).parameters
    return all(name in names for name in _TENSORS) and any(name in names for name in _SHAPES)


def form_of(function: Callable[..., Any]) -> Form | str:
    """The form of a function; or why it cannot be replaced, empty if it returns something else."""
    parameters = inspect.signature(function).parameters
    known = (*_TENSORS, *_SHAPES, *_IGNORED, _COUNTS)
    others = {name: each.default for name, each in parameters.items() if name not in known}
    if required := [name for name, default in others.items() if default is inspect.Parameter.empty]:
        return f"its argument {', '.join(required)} is not known"
    problem = ""
    for layout in _LAYOUTS:
        form = Form(tuple(parameters), others, layout)
        given, expected = _example(form)
        try:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                found = function(**given)
        except Exception as error:  # of other people's code, in a layout that it may not have
            problem = problem or f"it raised {type(error).__name__} on a small example: {error}"
            continue
        if not isinstance(found, Tensor):
            return ""
        if found.shape == expected.shape and torch.allclose(found.double(), expected, atol=1e-4):
            return form
        problem = "its numbers on a small example are not those of pliant.ops.ms_deform_attn"
    return problem


def _example(form: Form) -> tuple[dict[str, Any], Tensor]:
    """Arguments of a small example, and its result. Each axis has a size of its own."""
    drawn = torch.Generator().manual_seed(0)
    shapes, heads, points = [(2, 3), (4, 5)], 3, 2
    value, locations, weights = (
        torch.rand(size, generator=drawn, dtype=torch.float32)
        for size in ((2, 26, heads, 7), (2, 5, heads, 2, points, 2), (2, 5, heads, 2, points))
    )
    expected = ms_deform_attn(value.double(), shapes, None, locations.double(), weights.double())
    given: dict[str, Any] = {
        "value": form.layout.wrap(value, shapes),
        LOCATIONS: locations.flatten(3, 4) if _COUNTS in form.names else locations,
        "attention_weights": weights.flatten(3) if _COUNTS in form.names else weights,
        "value_spatial_shapes": torch.tensor(shapes),
        "spatial_shapes": torch.tensor(shapes),
        "value_spatial_shapes_list": shapes,
        "value_spatial_shapes_hw": shapes,
        "level_start_index": torch.tensor([0, 6]),
        "value_level_start_index": torch.tensor([0, 6]),
        "im2col_step": 64,
        "self": None,
        _COUNTS: [points, points],
    }
    return {name: value for name, value in given.items() if name in form.names}, expected


@dataclasses.dataclass(frozen=True)
class Form:
    """How a function takes its arguments.

    Args:
        names: its parameters.
        defaults: those that have no meaning here; other values of them may change what is computed.
        layout: layout of the values.
    """

    names: tuple[str, ...]
    defaults: dict[str, Any]
    layout: _Layout

    def attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Multi-scale deformable attention of the arguments, or None where the function itself should run."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if any(not _same(given.get(name, default), default) for name, default in self.defaults.items()):
            return None
        parts = self.layout.parts_of(given["value"])
        if parts is None or torch.jit.is_tracing() or _native.why_not():
            return None
        tensors = _in_one_dtype(*parts, given[LOCATIONS], given["attention_weights"])
        if tensors is None:
            return None
        *parts, locations, weights = tensors
        shapes = next(given[name] for name in _SHAPES if given.get(name) is not None)
        if _COUNTS in given:
            if locations.dim() != 5:
                return None
            locations, weights = _by_level(locations, weights, list(given[_COUNTS]))
        # Some callers merge the axes of maps and points, in both tensors or in one.
        locations = locations.unflatten(3, (len(shapes), -1)) if locations.dim() == 5 else locations
        weights = weights.unflatten(3, (len(shapes), -1)) if weights.dim() == 4 else weights
        value = self.layout.unwrap(parts, locations.shape[2])
        with torch.autocast("cpu", enabled=False):
            return ms_deform_attn(value, shapes, None, locations, weights)


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and value == default)


def _by_level(locations: Tensor, weights: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Points with an axis for the maps. Those that one map has fewer of have no weight."""
    most = max(counts)
    if min(counts) == most:
        return locations.unflatten(3, (-1, most)), weights.unflatten(3, (-1, most))
    padded = [F.pad(part, (0, 0, 0, most - part.shape[3])) for part in locations.split(list(counts), 3)]
    weighted = [F.pad(part, (0, most - part.shape[3])) for part in weights.split(list(counts), 3)]
    return torch.stack(padded, 3), torch.stack(weighted, 3)


def _in_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...] | None:
    """The tensors in the dtype of the PyTorch implementation, or None where that should run."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    if torch.is_autocast_enabled("cpu"):  # which raises what grid_sample takes to float32
        tensors = tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)
    dtypes = {tensor.dtype for tensor in tensors}
    return tensors if len(dtypes) == 1 and dtypes <= set(FLOATING) else None
