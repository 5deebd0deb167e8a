"""Deformable ConvNets for PyTorch.

Importing the package registers the operators with torch, now or when torch is imported, so that saved programs which
call them can be loaded. Everything else loads when it is first named.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pliant._after_import import after_import

try:
    __version__ = metadata.version("pliant")
except metadata.PackageNotFoundError:  # run from its sources, not installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from pliant import backbones, compat, data, engine, export, introspect, models, nn, ops, recipes
    from pliant.attention_patch import patch_attention, patch_transformers
    from pliant.compat.mmcv import patch_mmcv
    from pliant.explanation import explain
    from pliant.surgery import deform, param_groups, undeform
    from pliant.torchvision_patch import patch_torchvision

_SUBMODULES = ("backbones", "compat", "data", "engine", "export", "introspect", "models", "nn", "ops", "recipes")
_NAMES = {
    "deform": "pliant.surgery",
    "undeform": "pliant.surgery",
    "param_groups": "pliant.surgery",
    "explain": "pliant.explanation",
    "patch_attention": "pliant.attention_patch",
    "patch_mmcv": "pliant.compat.mmcv",
    "patch_torchvision": "pliant.torchvision_patch",
    "patch_transformers": "pliant.attention_patch",
}

__all__ = [
    "__version__",
    "backbones",
    "compat",
    "data",
    "deform",
    "engine",
    "explain",
    "export",
    "introspect",
    "models",
    "nn",
    "ops",
    "param_groups",
    "patch_attention",
    "patch_mmcv",
    "patch_torchvision",
    "patch_transformers",
    "recipes",
    "undeform",
]


def _register_operators() -> None:
    importlib.import_module("pliant.ops")


after_import("torch", _register_operators)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"pliant.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'pliant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
