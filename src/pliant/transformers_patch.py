"""Run the multi-scale deformable attention of Hugging Face's transformers on Pliant's kernels."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pliant._after_import import after_import
from pliant.ops import _native, ms_deform_attn
from pliant.ops._checks import FLOATING

_patches = 0
_originals: dict[tuple[Any, str], Callable[..., Tensor]] = {}  # by the class or module that holds them, and their name


class patch_transformers:
    """Run the multi-scale deformable attention of `transformers` on Pliant's compiled kernels for CPU tensors.

    The patch replaces the PyTorch implementation in every model of the installed version that has one, such as
    Deformable DETR, RT-DETR, RF-DETR, D-FINE, Grounding DINO, Mask2Former and OneFormer. Model files that are imported
    later are patched when they are. Models that exist already are served as well, except D-FINE and DEIMv2, which keep
    the function that they were built with: build these after the call. Other devices keep the PyTorch implementation,
    and so do `torch.jit.trace` and the discrete sampling of RT-DETRv2. Dtypes stay those of transformers, also under
    autocast, and values agree up to rounding.

    Call it to patch for good, or use it as a context manager. Patches may be nested; the PyTorch implementation returns
    when the last one is undone.

    Raises:
        RuntimeError: if the compiled kernels are not installed, since the reference would not be faster.
        ImportError: if transformers is not installed.

    Examples:
        >>> pliant.patch_transformers()  # doctest: +SKIP
        >>> model = transformers.AutoModelForObjectDetection.from_pretrained("PekingU/rtdetr_r50vd")  # doctest: +SKIP
    """

    def __init__(self) -> None:
        global _patches
        if reason := _native.why_not():
            raise RuntimeError(f"patch_transformers() would gain nothing: {reason}")
        names = _models_with_attention()
        _patches += 1
        self._active = True
        for name in names:
            after_import(name, functools.partial(_install, name))

    def undo(self) -> None:
        """Undo this patch. A second call does nothing."""
        global _patches
        if not self._active:
            return
        self._active = False
        _patches -= 1
        if _patches == 0:
            _remove()

    def __enter__(self) -> patch_transformers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


@functools.cache
def _models_with_attention() -> tuple[str, ...]:
    """Names of the modules of transformers that define one of `_FORMS`; they are read, not imported."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        raise ImportError("patch_transformers() needs transformers: pip install transformers")
    defines = re.compile(rf"^(class|def) ({'|'.join(_FORMS)})\b".encode(), re.MULTILINE)
    models = Path(found.submodule_search_locations[0]) / "models"
    files = (file for file in sorted(models.glob("*/modeling_*.py")) if defines.search(file.read_bytes()))
    return tuple(f"transformers.models.{file.parent.name}.{file.stem}" for file in files)


def _install(name: str) -> None:
    module = sys.modules[name]
    for attribute, replaced in _FORMS.items():
        found = getattr(module, attribute, None)
        if not _patches or found is None:
            continue
        holder, key = (found, "forward") if inspect.isclass(found) else (module, attribute)
        if (holder, key) in _originals:
            continue
        original = getattr(holder, key)
        expected, given = inspect.signature(replaced).parameters, inspect.signature(original).parameters
        if list(given) != list(expected)[1:]:
            warnings.warn(
                f"patch_transformers() leaves {name}.{attribute} as it is: it takes ({', '.join(given)}), not "
                f"({', '.join(list(expected)[1:])})",
                stacklevel=2,
            )
            continue
        _originals[holder, key] = original
        setattr(holder, key, _replacement(replaced, original))


def _replacement(replaced: Callable[..., Tensor], original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        # D-FINE's layers may hold this function longer than the patch lasts.
        return replaced(original, *args, **kwargs) if _patches else original(*args, **kwargs)

    return call


def _remove() -> None:
    for (holder, key), original in _originals.items():
        setattr(holder, key, original)
    _originals.clear()


# The forms that transformers has, with its parameters; the first one is the implementation to return to.
def _of_module(
    original: Callable[..., Tensor],
    self: Any,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    tensors = _prepared(value, sampling_locations, attention_weights)
    if tensors is None:
        rest = level_start_index, sampling_locations, attention_weights, im2col_step
        return original(self, value, value_spatial_shapes, value_spatial_shapes_list, *rest)
    return _attend(value_spatial_shapes_list, *tensors)


def _of_function(
    original: Callable[..., Tensor],
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    tensors = _prepared(value, sampling_locations, attention_weights)
    if tensors is None:
        return original(value, value_spatial_shapes, sampling_locations, attention_weights)
    return _attend(value_spatial_shapes, *tensors)


def _of_points_by_level(
    original: Callable[..., Tensor],
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    """Levels may have different numbers of points: those that one lacks have no weight."""
    tensors = _prepared(value, sampling_locations, attention_weights)
    if tensors is None or method != "default" or sampling_locations.dim() != 5:
        return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
    most, counts = max(num_points_list), list(num_points_list)
    locations = [F.pad(part, (0, 0, 0, most - part.shape[3])) for part in tensors[1].split(counts, 3)]
    weights = [F.pad(part, (0, most - part.shape[3])) for part in tensors[2].split(counts, 3)]
    return _attend(value_spatial_shapes, tensors[0], torch.stack(locations, 3), torch.stack(weights, 3))


_FORMS: dict[str, Callable[..., Tensor]] = {
    "MultiScaleDeformableAttention": _of_module,
    "multi_scale_deformable_attention": _of_function,
    "multi_scale_deformable_attention_v2": _of_points_by_level,
}


def _prepared(*tensors: Tensor) -> tuple[Tensor, ...] | None:
    """The tensors in the dtype of the PyTorch implementation, or None where that should run."""
    if any(tensor.device.type != "cpu" for tensor in tensors) or _native.why_not() or torch.jit.is_tracing():
        return None
    if torch.is_autocast_enabled("cpu"):  # which raises what grid_sample takes to float32
        tensors = tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)
    dtypes = {tensor.dtype for tensor in tensors}
    return tensors if len(dtypes) == 1 and dtypes <= set(FLOATING) else None


def _attend(shapes: Tensor | Sequence[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return ms_deform_attn(value, shapes, None, locations, weights)
