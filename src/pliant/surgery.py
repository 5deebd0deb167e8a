"""Make any model deformable, undo it, and group its parameters as the method trains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pliant._layer_classes import COMPUTING, deformable_classes, members_between, plain_class
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool

Where = str | int | Callable[[str, nn.Module], bool]


def deform(
    model: nn.Module,
    where: Where,
    *,
    offset_groups: int = 1,
    modulated: bool = False,
    border: str = "paper",
    offset_dilation: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Turn convolutions of a model into deformable ones, in place; weights stay, and so does the output at first.

    A convolution stays the object that it is: it becomes an instance of `DeformConv2d` and gets an offset branch. So
    its hooks and their handles, its parameters, buffers and submodules, every attribute, and whatever else refers to
    it stay as they are. The branch is on the device and of the dtype of the weight.

    Args:
        model: any torch.nn model. Convolutions are torch.nn.Conv2d padded with zeros, timm's Conv2dSame, or subclasses
            of these that compute the same (they define no forward of their own).
        where: which ones: a glob pattern on module names (`"layer4.*.conv2"`), a predicate
            `(name, module) -> bool`, or an int, the last n convolutions with a kernel larger than 1, in the order
            of `model.named_modules()`. A module that the model holds under several names has all of them.
        offset_groups, modulated, border, offset_dilation: as for `pliant.nn.DeformConv2d`.

    Returns:
        The model itself.

    Raises:
        ValueError: when nothing matches, or a match cannot be deformed: its weight or bias is no parameter but computed
            (weight_norm, spectral_norm, pruning, parametrizations), its forward was replaced, or it has an attribute
            of a name that the deformable layer needs. The message names the layer, and nothing is changed then.
    """
    chosen = _choose(model, where)
    _require_one_process(model, "deform")
    options: dict[str, Any] = {
        "offset_groups": offset_groups,
        "modulated": modulated,
        "border": border,
        "offset_dilation": offset_dilation,
    }
    changes = [(conv, *_deformed(name or "the model", conv, **options)) for name, conv in chosen.items()]
    for conv, layer, kind in changes:
        conv.__dict__.update({name: vars(layer)[name] for name in (*_GEOMETRY, *_added_attributes())})
        conv._modules["offset_conv"] = layer.offset_conv
        conv.__class__ = kind
    return model


def undeform(model: nn.Module) -> nn.Module:
    """Turn every `DeformConv2d` of a model back into the convolution that it was, with the same weights, in place.

    The offset branches are dropped, with all that hangs on them. Everything else on a layer stays, as in `deform`; a
    layer that was built as a `DeformConv2d` becomes a torch.nn.Conv2d. A model without deformable convolutions is
    returned as it is.

    Raises:
        ValueError: when a layer cannot be turned back, for the reasons of `deform`, or because it is of a subclass
            with members of its own. The message names the layer, and nothing is changed then.
    """
    layers = {name or "the model": layer for name, layer in model.named_modules() if isinstance(layer, DeformConv2d)}
    if layers:
        _require_one_process(model, "undeform")
    kinds = [_plain_class(name, layer) for name, layer in layers.items()]
    for layer, plain in zip(layers.values(), kinds, strict=True):
        for attribute in _added_attributes():
            del layer.__dict__[attribute]
        del layer._modules["offset_conv"]
        layer.__class__ = plain  # type: ignore[assignment]
    return model


def most_deformable(model: nn.Module) -> int:
    """How many of the last convolutions with a kernel larger than 1 `deform` can take, at most."""
    most = 0
    for names, conv in reversed(_convolutions(model)):
        if max(conv.kernel_size) > 1:
            try:
                _deformable_as(names[0], conv)
            except ValueError:
                break
            most += 1
    return most


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    offset_lr_mult: float = 1.0,
    roi_offset_lr_mult: float = 0.01,
    lr_mult: Mapping[str, float] | None = None,
    no_decay: Sequence[str] = ("*.bias",),
) -> list[dict[str, Any]]:
    """The trainable parameters in groups for a torch optimizer, offset branches with their multiplier beta.

    Args:
        model: any model; parameters that need no gradient are left out.
        lr: the base learning rate.
        weight_decay: for all parameters but `no_decay`.
        offset_lr_mult: beta of the convolutional offset branches (1 in the paper).
        roi_offset_lr_mult: beta of the fully connected branch of deformable RoI pooling (0.01 in the paper).
        lr_mult: further multipliers by glob pattern on parameter names; the last pattern that matches wins, over
            the two betas too.
        no_decay: glob patterns of the parameters without weight decay (biases, in the authors' training).

    Returns:
        One dict for each different pair of rate and decay, in order of first use: `params`, `lr`,
        `weight_decay`, and `names` of the parameters.

    Raises:
        ValueError: for a pattern in `lr_mult` that matches no parameter.
    """
    patterns = {**_beta(model, offset_lr_mult, roi_offset_lr_mult), **(lr_mult or {})}
    names = [name for name, _ in model.named_parameters()]
    unused = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if unused:
        raise ValueError(f"lr_mult: no parameter matches {', '.join(map(repr, unused))}")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factors = [factor for pattern, factor in patterns.items() if fnmatchcase(name, pattern)]
        rate = lr * (factors[-1] if factors else 1.0)
        decay = 0.0 if any(fnmatchcase(name, pattern) for pattern in no_decay) else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _beta(model: nn.Module, convolutional: float, roi: float) -> dict[str, float]:
    patterns = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, DeformRoIPool):
            patterns[f"{prefix}offset_fc.*"] = roi
        elif isinstance(module, DeformConv2d | DeformPSRoIPool):
            patterns[f"{prefix}offset_conv.*"] = convolutional
    return patterns


def _convolutions(model: nn.Module) -> list[tuple[list[str], nn.Conv2d]]:
    """All convolutions that are not deformable and not the offset branch of a deformable layer, with their names."""
    branches = {
        id(module.offset_conv) for module in model.modules() if isinstance(module, DeformConv2d | DeformPSRoIPool)
    }
    found: dict[int, tuple[list[str], nn.Conv2d]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d) and not isinstance(module, DeformConv2d) and id(module) not in branches:
            found.setdefault(id(module), ([], module))[0].append(name)
    return list(found.values())


def _choose(model: nn.Module, where: Where) -> dict[str, nn.Conv2d]:
    convolutions = _convolutions(model)
    if isinstance(where, bool) or not (isinstance(where, str | int) or callable(where)):
        raise TypeError(f"where must be a pattern, a predicate or an int, got {where!r}")
    if isinstance(where, int):
        large = [(names[0], conv) for names, conv in convolutions if max(conv.kernel_size) > 1]
        if not 0 <= where <= len(large):
            raise ValueError(f"where={where}: the model has {len(large)} convolutions with a kernel larger than 1")
        return dict(large[len(large) - where :])

    def matches(name: str, module: nn.Module) -> bool:
        return fnmatchcase(name, where) if isinstance(where, str) else bool(where(name, module))

    chosen = {
        matching[0]: conv
        for names, conv in convolutions
        if (matching := [name for name in names if matches(name, conv)])
    }
    if not chosen:
        asked = f"where={where!r}" if isinstance(where, str) else "the predicate where"
        others = [(name, module) for name, module in model.named_modules() if isinstance(where, str)]
        matched = next((f" ({name} is a {_name(module)})" for name, module in others if matches(name, module)), "")
        some = ", ".join(names[0] for names, _ in convolutions[-5:]) or "none"
        raise ValueError(f"{asked} matches no plain convolution of the model{matched}; it has for example: {some}")
    return chosen


def _name(module: nn.Module) -> str:
    """The class of a module, of a scripted one that of the module it was made from."""
    original = getattr(module, "original_name", None)
    return f"{type(module).__name__} of {original}" if isinstance(original, str) else type(module).__name__


_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def _deformed(name: str, conv: nn.Conv2d, **options: Any) -> tuple[DeformConv2d, type[DeformConv2d]]:
    """A deformable layer whose attributes a convolution gets, and the class that it becomes; or ValueError."""
    base, kind = _deformable_as(name, conv)
    geometry = {attribute: getattr(conv, attribute) for attribute in _GEOMETRY}
    weight = conv.weight
    try:
        layer = base(**geometry, bias=conv.bias is not None, device=weight.device, dtype=weight.dtype, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        layer.offset_conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer.offset_conv.train(conv.training)
    return layer, kind


def _deformable_as(name: str, conv: nn.Conv2d) -> tuple[type[DeformConv2d], type[DeformConv2d]]:
    """What computes a convolution deformably, and the class that it becomes; or ValueError."""
    _require_ordinary_weights(name, conv)
    if conv.padding_mode != "zeros":
        raise ValueError(f"{name}: padding_mode must be 'zeros', got {conv.padding_mode!r}")
    base, kind = deformable_classes(name, type(conv))
    own = {*vars(conv), *conv._parameters, *conv._buffers, *conv._modules}
    taken = sorted(_new_names() & own.union(members_between(type(conv), nn.Conv2d)) | own & COMPUTING)
    if taken:
        raise ValueError(f"{name}: the convolution has {', '.join(taken)} of its own, which a deformable one needs")
    weight = conv.weight
    expected = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if tuple(weight.shape) != expected or not weight.is_floating_point():
        raise ValueError(
            f"{name}: its weight must be of floating point and have shape {list(expected)}, got {weight.dtype} and "
            f"{list(weight.shape)}"
        )
    return base, kind


def _plain_class(name: str, layer: DeformConv2d) -> type[nn.Conv2d]:
    """The class of the convolution that a deformable layer becomes; or ValueError."""
    _require_ordinary_weights(name, layer)
    replaced = sorted(vars(layer).keys() & (COMPUTING | _new_members()))
    if replaced:
        raise ValueError(f"{name}: the layer has {', '.join(replaced)} of its own, in place of its class's")
    return plain_class(name, type(layer))


@cache
def _added_attributes() -> frozenset[str]:
    """The attributes of a deformable layer that a convolution does not have."""
    with torch.device("meta"):
        return frozenset(vars(DeformConv2d(1, 1, 1)).keys() - vars(nn.Conv2d(1, 1, 1)).keys())


def _new_members() -> set[str]:
    """What the class of deformable layers defines that torch.nn.Conv2d does not have."""
    return vars(DeformConv2d).keys() - set(dir(nn.Conv2d))


def _new_names() -> set[str]:
    return {*_added_attributes(), "offset_conv", *_new_members()}


def _require_ordinary_weights(name: str, conv: nn.Conv2d) -> None:
    """Raise ValueError unless weight and bias are parameters that hold what the layer computes with."""
    if hasattr(conv, "parametrizations"):
        raise ValueError(f"{name}: the convolution is parametrized; remove that first")
    for part in ("weight", "bias"):
        if part in conv._parameters:
            continue
        hooks = [type(hook).__name__ for hook in conv._forward_pre_hooks.values() if not isinstance(hook, FunctionType)]
        by = f" by {', '.join(hooks)}" if hooks else ""
        raise ValueError(
            f"{name}: its {part} is no parameter but computed{by} (weight_norm, pruning, ...); remove that first"
        )
    if nn.parameter.is_lazy(conv.weight):
        raise ValueError(f"{name}: its weight has no shape yet ({type(conv).__name__}); run the model once before")


def _require_one_process(model: nn.Module, what: str) -> None:
    """Raise ValueError if the model, or a part of it, already counts its parameters for several processes."""
    wrapped = [name or "the model" for name, part in model.named_modules() if isinstance(part, DistributedDataParallel)]
    if wrapped:
        raise ValueError(
            f"{wrapped[0]} is a DistributedDataParallel, which knows only the parameters it had; {what} first"
        )
