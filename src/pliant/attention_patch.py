"""Run the multi-scale deformable attention that other packages write in PyTorch on Pliant's kernels."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from pliant import _attention_forms as forms
from pliant._after_import import after_import
from pliant._patch import Patch, lasts
from pliant.ops import _native

# By package: the class or module that holds a replaced function, its name there, and the function.
_originals: defaultdict[str, list[tuple[Any, str, Callable[..., Tensor]]]] = defaultdict(list)
_replacements: weakref.WeakSet[Callable[..., Tensor]] = weakref.WeakSet()


class patch_attention(Patch):
    """Run the multi-scale deformable attention of a package on Pliant's compiled kernels for CPU tensors.

    Packages with models like Deformable DETR, RT-DETR or D-FINE have a function in PyTorch for devices without an
    extension, or a class whose `forward` is this function. The patch replaces every one in the package that takes
    values, sampling locations and attention weights by mmcv's, Deformable DETR's or D-FINE's names. Before one is
    replaced, it is called with a small example, which tells how it lays out the values; if its numbers are not those
    of `pliant.ops.ms_deform_attn` in any layout, it stays as it is, with a warning.

    Modules that are imported later are patched when they are, and models that exist already are served as well, except
    those that keep the function itself, such as D-FINE's: build these after the call. Other devices keep the PyTorch
    implementation, and so do `torch.jit.trace` and arguments with another meaning, such as the discrete sampling of
    RT-DETRv2. Dtypes stay those of the package, also under autocast, and values agree up to rounding.

    Call it to patch for good, or use it as a context manager. Patches may be nested; the PyTorch implementation returns
    when the last one of a package is undone.

    Args:
        package: name of the package to import, such as `"transformers"`, `"rfdetr"` or `"libreyolo"`.

    Raises:
        RuntimeError: if the compiled kernels are not installed, since the reference would not be faster.
        ImportError: if the package is not installed.
        ValueError: if no file of the package has such a function.

    Examples:
        >>> pliant.patch_attention("rfdetr")  # doctest: +SKIP
        >>> model = rfdetr.RFDETRNano()  # doctest: +SKIP
    """

    def __init__(self, package: str) -> None:
        self._package = package
        super().__init__(_target(package))

    def _install(self) -> None:
        name = type(self).__name__
        if reason := _native.why_not():
            raise RuntimeError(f"{name}() would gain nothing: {reason}")
        modules = _modules_with_attention(self._package)
        if not modules:
            raise ValueError(
                f"{name}() found no function for multi-scale deformable attention in {self._package}: none of its "
                f"files has a parameter {forms.LOCATIONS}"
            )
        for module in modules:
            after_import(module, functools.partial(_replace_in, self._package, module))

    def _remove(self) -> None:
        for holder, name, original in _originals.pop(self._package, ()):
            setattr(holder, name, original)


class patch_transformers(patch_attention):
    """Run the multi-scale deformable attention of `transformers` on Pliant's compiled kernels for CPU tensors.

    This is `patch_attention("transformers")`. It serves Deformable DETR, RT-DETR, RF-DETR, D-FINE, Grounding DINO,
    Mask2Former, OneFormer and every other model of the installed version that has this attention.

    Raises:
        RuntimeError: if the compiled kernels are not installed, since the reference would not be faster.
        ImportError: if transformers is not installed.

    Examples:
        >>> pliant.patch_transformers()  # doctest: +SKIP
        >>> model = transformers.AutoModelForObjectDetection.from_pretrained("PekingU/rtdetr_r50vd")  # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__("transformers")


def _target(package: str) -> str:
    return f"attention of {package}"


@functools.cache
def _modules_with_attention(package: str) -> tuple[str, ...]:
    """Names of the modules whose source has sampling locations; they are read, not imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{package} is not installed: pip install {package}")
    folder = Path(found.submodule_search_locations[0])
    files = folder.glob("models/*/modeling_*.py" if package == "transformers" else "**/*.py")
    names = []
    for file in sorted(files):
        if forms.LOCATIONS.encode() in file.read_bytes():
            parts = file.relative_to(folder).with_suffix("").parts
            names.append(".".join((package, *parts)).removesuffix(".__init__"))
    return tuple(names)


def _replace_in(package: str, name: str) -> None:
    """Replace the functions of a module, and their names in the modules that imported them from it."""
    if not lasts(_target(package)):
        return
    module = sys.modules[name]
    for holder, key, original in list(_candidates(module)):
        form = forms.form_of(original)
        if isinstance(form, str):
            if form:
                warnings.warn(f"patch_attention({package!r}) leaves {name}.{_shown(holder, key)}: {form}", stacklevel=2)
            continue
        replacement = _replacement(_target(package), form, original)
        places = [(holder, key)] if inspect.isclass(holder) else _places(original)
        for place, attribute in places:
            _originals[package].append((place, attribute, original))
            setattr(place, attribute, replacement)


def _candidates(module: ModuleType) -> Iterator[tuple[Any, str, Callable[..., Tensor]]]:
    """Functions of a module, and forwards of its classes, that take sampling locations."""
    for key, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        holder, name = (value, "forward") if inspect.isclass(value) else (module, key)
        function = vars(holder).get(name)
        if inspect.isfunction(function) and function not in _replacements and forms.takes_attention(function):
            yield holder, name, function


def _places(function: Callable[..., Tensor]) -> list[tuple[Any, str]]:
    """Modules that have the function, and its name there."""
    name = function.__name__
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [(module, name) for module in modules if vars(module).get(name) is function]


def _replacement(target: str, form: forms.Form, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        # Modules and layers may hold this function longer than the patch lasts.
        out = form.attend(args, kwargs) if lasts(target) else None
        return original(*args, **kwargs) if out is None else out

    _replacements.add(call)
    return call


def _shown(holder: Any, key: str) -> str:
    return f"{holder.__name__}.{key}" if inspect.isclass(holder) else key
