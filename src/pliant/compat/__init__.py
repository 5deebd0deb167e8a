"""The operators under the names, arguments and state dicts of other libraries."""

from pliant.compat import mmcv

__all__ = ["mmcv"]
