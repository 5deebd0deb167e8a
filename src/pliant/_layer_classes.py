"""The classes that a convolution has when it is made deformable in place, and when it is reverted."""

from __future__ import annotations

from functools import cache
from types import new_class
from typing import Any

from torch import nn

from pliant.nn import DeformConv2d, DeformConv2dSame

# The deformable class for each class that defines the computation of a convolution, by its full name.
_KINDS: dict[str, type[DeformConv2d]] = {
    "torch.nn.modules.conv.Conv2d": DeformConv2d,
    "timm.layers.conv2d_same.Conv2dSame": DeformConv2dSame,
}
_PLAIN: dict[type, type[nn.Conv2d]] = {DeformConv2d: nn.Conv2d}
# The methods of a convolution that a deformable layer replaces.
COMPUTING = {"forward", "_conv_forward"}
# Members of a subclass that may be lost when its instances become a torch.nn.Conv2d.
_DISPENSABLE = (vars(nn.Conv2d).keys() - COMPUTING) | {"extra_repr", "__repr__", "__annotations__"}


def deformable_classes(name: str, plain: type[nn.Conv2d]) -> tuple[type[DeformConv2d], type[DeformConv2d]]:
    """The deformable class that computes a class of convolutions, and the class that its instances become.

    Both are the same for `torch.nn.Conv2d`. For a subclass the second one inherits from both, so the methods of the
    subclass stay.

    Raises:
        ValueError: if the class computes something else. The message begins with `name`, the name of the layer.
    """
    definers = {next(base for base in plain.__mro__ if method in vars(base)) for method in COMPUTING}
    known = [base for base in plain.__mro__ if f"{base.__module__}.{base.__qualname__}" in _KINDS]
    if not known or not definers <= {known[0], nn.Conv2d}:
        raise ValueError(f"{name}: {plain.__name__} computes more than torch.nn.Conv2d does")
    base = _KINDS[f"{known[0].__module__}.{known[0].__qualname__}"]
    try:
        kind: type[DeformConv2d] = _joined(base, plain)  # type: ignore[arg-type]
        object.__new__(plain).__class__ = kind
    except TypeError as error:
        raise ValueError(f"{name}: {plain.__name__} cannot become deformable: {error}") from error
    return base, kind


def plain_class(name: str, kind: type[DeformConv2d]) -> type[nn.Conv2d]:
    """The class of the convolution that an instance of a class of deformable layers becomes.

    Raises:
        ValueError: if the class has members of its own, which would be lost. The message begins with `name`.
    """
    if kind in _PLAIN:
        return _PLAIN[kind]
    own = sorted(members_between(kind, DeformConv2d) - _DISPENSABLE)
    if own:
        raise ValueError(f"{name}: {kind.__name__} defines {', '.join(own)}, which torch.nn.Conv2d does not have")
    return nn.Conv2d


def members_between(kind: type, base: type) -> set[str]:
    """The members that a class and its bases define, without the bases that it shares with `base`."""
    return {member for each in kind.__mro__ if each not in base.__mro__ for member in vars(each)}


@cache
def _joined(deformable: Any, plain: Any) -> Any:
    """A deformable class that keeps the methods of a subclass of Conv2d and is a subclass of it too."""
    if plain is nn.Conv2d:
        return deformable

    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *state = super(kind, self).__reduce_ex__(protocol)
        return (_empty, (deformable, plain), *state)

    members = {"__module__": plain.__module__, "__doc__": deformable.__doc__, "__reduce_ex__": reduce}
    kind: Any = new_class(f"Deform{plain.__name__}", (deformable, plain), exec_body=lambda space: space.update(members))
    _PLAIN[kind] = plain
    return kind


def _empty(deformable: Any, plain: Any) -> Any:
    """An instance without attributes, for copy and pickle, which cannot find a joined class by its name."""
    return object.__new__(_joined(deformable, plain))
