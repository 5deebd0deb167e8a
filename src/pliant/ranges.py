"""The types of settings, each with the values that it may have, and the check of a value, which pydantic does."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from pliant.suggestions import did_you_mean

T = TypeVar("T", bound=tuple[Any, ...])


def _rising(items: T) -> T:
    if any(one >= other for one, other in pairwise(items)):
        raise PydanticCustomError("rising", "Input should be rising")
    return items


def _distinct(items: T) -> T:
    if len(set(items)) < len(items):
        raise PydanticCustomError("distinct", "Input should be different items")
    return items


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "Input should be text that is not empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Names = Annotated[tuple[Text, ...], AfterValidator(_distinct)]
Steps = Annotated[int, Field(ge=1, le=10**9)]
WarmupSteps = Annotated[int, Field(ge=0, le=10**9)]
Images = Annotated[int, Field(ge=1, le=2**16)]
Workers = Annotated[int, Field(ge=0, le=1024)]
Rate = Annotated[float, Field(gt=0, le=100)]
Multiplier = Annotated[float, Field(ge=0, le=1000)]
Factor = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Fractions = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(_rising)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Norm = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes
Pixels = Annotated[int, Field(ge=16, le=2**14)]  # a cell of the feature map at least
Crop = Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=2)]
Dilation = Annotated[int, Field(ge=1, le=128)]
Groups = Annotated[int, Field(ge=1, le=1024)]
Layers = Annotated[int, Field(ge=0, le=1000)]
Stages = Annotated[int, Field(ge=0, le=3)]
Bins = Annotated[int, Field(ge=1, le=32)]
AnchorScales = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1024)], ...], Field(min_length=1), AfterValidator(_distinct)
]
Colour = Annotated[tuple[Fraction, ...], Field(min_length=3, max_length=3)]
HeldOut = Annotated[float, Field(ge=0, le=0.5)]
MaskValues = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(\d{1,5}|#[0-9a-fA-F]{6}|\*):.*\S")], ...], AfterValidator(_distinct)
]  # 255:leaf, #ff0000:leaf, or *:leaf for all other values
MaskIds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**16)], ...], AfterValidator(_distinct)]
Score = Annotated[float, Field(ge=0, lt=1)]  # at 1 nothing would be found
BackgroundIoU = Annotated[float, Field(ge=0, lt=0.5)]  # RoIs of half and more are objects
Detections = Annotated[int, Field(ge=1, le=10_000)]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def read(name: str, value: Any, kind: Any, *, strict: bool = True) -> Any:
    """A value as one of a type of this module.

    Args:
        name: The setting, for the error.
        value: What was given.
        kind: The type, perhaps ``| None``.
        strict: Whether the value must be of the type; otherwise text is read as a number or a truth value, and a list
            as a tuple.

    Raises:
        ValueError: If the value is not of the type, or out of its range; the message shows the name, what the value
            must be, and the value.
    """
    try:
        return _adapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        message = re.sub(r"^\w+ should ", "must ", found["msg"])  # "Input should be a valid integer"
        choice = did_you_mean(found["input"], _choices(kind)) if isinstance(found["input"], str) else ""
        raise ValueError(f"{name} {message}, got {found['input']!r}{choice}") from None


def _choices(kind: Any) -> list[str]:
    """The texts that a type of choices allows; empty for other types."""
    if typing.get_origin(kind) is typing.Literal:
        return [choice for choice in typing.get_args(kind) if isinstance(choice, str)]
    return [choice for option in typing.get_args(kind) for choice in _choices(option)]


def check_values(values: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Check values whose names are among the types; None is not checked, and a list passes for a tuple.

    Raises:
        ValueError: See `read`.
    """
    for name, value in values.items():
        if name in types and value is not None:
            read(name, tuple(value) if isinstance(value, list) else value, types[name])


def field_types(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass.

    Raises:
        ValueError: See `read`.
    """
    for name, kind in field_types(type(instance)).items():
        read(name, getattr(instance, name), kind)
