"""Values of annotated types: read from text, checked, and described to a user."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, Union


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def describe(hint: Any) -> str:
    """A type in words, such as ``int or none``."""
    names = []
    for option in _options(hint):
        if typing.get_origin(option) is tuple:
            names.append(f"{typing.get_args(option)[0].__name__}s separated by commas")
        elif typing.get_origin(option) is Literal:
            names.append(" or ".join(map(str, typing.get_args(option))))
        else:
            names.append("none" if option is types.NoneType else option.__name__)
    return " or ".join(names)


def parse(text: str, hint: Any) -> Any:
    """A value from its text: lists separated by commas, ``none``, ``true`` and ``false``.

    Raises:
        ValueError: If the text is no value of the type.
    """
    options = _options(hint)
    if types.NoneType in options and text.lower() == "none":
        return None
    option = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        return tuple(parse(part.strip(), item) for part in text.split(",") if part.strip())
    if typing.get_origin(option) is Literal:
        if text not in typing.get_args(option):
            raise ValueError
        return text
    if option is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return option(text)


def require_type(name: str, value: Any, hint: Any) -> None:
    """Raise `TypeError` if a value is not of the type; integers pass for floats."""
    if not any(_fits(value, option) for option in _options(hint)):
        raise TypeError(f"{name} must be {describe(hint)}, got {value!r}")


def _fits(value: Any, option: Any) -> bool:
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        return isinstance(value, tuple) and all(_fits(part, item) for part in value)
    if typing.get_origin(option) is Literal:
        return value in typing.get_args(option)
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, option)
