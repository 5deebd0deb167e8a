"""Make any model deformable, revert it, and group its parameters by learning rate."""

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
    """Turn convolutions of a model into deformable ones, in place.

    The weights stay, and the output is initially unchanged. Every convolution remains the same object: it becomes an
    instance of `DeformConv2d` and gets an offset branch on the device and in the dtype of its weight. Its hooks,
    parameters, buffers, submodules and attributes stay, and so do all references to it.

    Args:
        model: any `torch.nn.Module`. Its convolutions may be `torch.nn.Conv2d` padded with zeros, timm's `Conv2dSame`,
            or subclasses of either without a `forward` of their own.
        where: which convolutions to deform: a glob pattern on module names (`"layer4.*.conv2"`), a predicate
            `(name, module) -> bool`, or an int n for the last n convolutions with a kernel larger than 1 in the order
            of `model.named_modules()`. A module with several names matches by any of them.
        offset_groups, modulated, border, offset_dilation: see `pliant.nn.DeformConv2d`.

    Returns:
        The model.

    Raises:
        ValueError: if nothing matches, or a match cannot be deformed: its weight or bias is computed (weight_norm,
            spectral_norm, pruning, parametrizations), its `forward` was replaced, or it has an attribute whose name the
            deformable layer needs. The message names the layer, and the model is unchanged.
        TypeError: if `where` is none of these.

    Examples:
        >>> import torchvision
        >>> model = torchvision.models.resnet18().eval()
        >>> image = torch.rand(1, 3, 64, 64)
        >>> before = model(image)
        >>> model = pliant.deform(model, "layer4.*.conv2")
        >>> model.layer4[0].conv2.offset_conv.out_channels
        18
        >>> torch.allclose(model(image), before, atol=1e-4)
        True
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
    """Turn every `DeformConv2d` of a model back into a plain convolution with the same weights, in place.

    The offset branches are dropped, with everything attached to them. Everything else on a layer stays, as in `deform`.
    A layer that was built as a `DeformConv2d` becomes a `torch.nn.Conv2d`.

    Args:
        model: any model. Without deformable convolutions it is returned unchanged.

    Returns:
        The model.

    Raises:
        ValueError: if a layer cannot be reverted, for the reasons given for `deform`, or because its class is a
            subclass with members of its own. The message names the layer, and the model is unchanged.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3))
        >>> pliant.undeform(model)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
        )
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
    """The largest n for which `deform(model, n)` succeeds.

    Args:
        model: any model.

    Returns:
        The number of convolutions with a kernel larger than 1, counted from the last, that can be deformed.

    Examples:
        >>> from pliant.surgery import most_deformable
        >>> most_deformable(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 1)))
        1
    """
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
    """Group the trainable parameters for a torch optimizer, with learning-rate multipliers for the offset branches.

    Args:
        model: any model. Parameters that need no gradient are left out.
        lr: base learning rate.
        weight_decay: weight decay of all parameters except `no_decay`.
        offset_lr_mult: learning-rate multiplier of the convolutional offset branches (beta in the paper, 1 there).
        roi_offset_lr_mult: learning-rate multiplier of the fully connected branch of deformable RoI pooling (0.01 in
            the paper).
        lr_mult: further multipliers, by glob pattern on parameter names. The last pattern that matches wins, also over
            the two multipliers above.
        no_decay: glob patterns of the parameters without weight decay, by default biases as in the authors' training.

    Returns:
        One dict per pair of learning rate and weight decay, in order of first use, with the keys `params`, `lr`,
        `weight_decay` and `names` (of the parameters).

    Raises:
        ValueError: if a pattern in `lr_mult` matches no parameter.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3))
        >>> groups = pliant.param_groups(model, lr=0.01, weight_decay=5e-4, offset_lr_mult=0.1)
        >>> [(group["lr"], group["names"]) for group in groups if group["weight_decay"]]
        [(0.01, ['0.weight']), (0.001, ['0.offset_conv.weight'])]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
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
    """All plain convolutions except the offset branches of deformable layers, with their names."""
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
    """The class of a module; for a scripted module also the class it was scripted from."""
    original = getattr(module, "original_name", None)
    return f"{type(module).__name__} of {original}" if isinstance(original, str) else type(module).__name__


_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def _deformed(name: str, conv: nn.Conv2d, **options: Any) -> tuple[DeformConv2d, type[DeformConv2d]]:
    """A deformable layer whose attributes a convolution gets, and the class that the convolution becomes."""
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
    """The deformable class that computes a convolution, and the class that it becomes; ValueError if none."""
    _require_ordinary_weights(name, conv)
    if conv.padding_mode != "zeros":
        raise ValueError(f"{name}: padding_mode must be 'zeros', got {conv.padding_mode!r}")
    base, kind = deformable_classes(name, type(conv))
    own = {*vars(conv), *conv._parameters, *conv._buffers, *conv._modules}
    taken = sorted(_new_names() & own.union(members_between(type(conv), nn.Conv2d)) | own & COMPUTING)
    if taken:
        raise ValueError(f"{name}: the convolution already has {', '.join(taken)}, which a deformable one needs")
    weight = conv.weight
    expected = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if tuple(weight.shape) != expected or not weight.is_floating_point():
        raise ValueError(
            f"{name}: its weight must be floating point of shape {list(expected)}, got {weight.dtype} of shape "
            f"{list(weight.shape)}"
        )
    return base, kind


def _plain_class(name: str, layer: DeformConv2d) -> type[nn.Conv2d]:
    """The class of the convolution that a deformable layer becomes. Raises ValueError if there is none."""
    _require_ordinary_weights(name, layer)
    replaced = sorted(vars(layer).keys() & (COMPUTING | _new_members()))
    if replaced:
        raise ValueError(f"{name}: the layer replaces {', '.join(replaced)} of its class")
    return plain_class(name, type(layer))


@cache
def _added_attributes() -> frozenset[str]:
    """The attributes that a deformable layer has and a convolution has not."""
    with torch.device("meta"):
        return frozenset(vars(DeformConv2d(1, 1, 1)).keys() - vars(nn.Conv2d(1, 1, 1)).keys())


def _new_members() -> set[str]:
    """The members of the class of deformable layers that `torch.nn.Conv2d` does not have."""
    return vars(DeformConv2d).keys() - set(dir(nn.Conv2d))


def _new_names() -> set[str]:
    return {*_added_attributes(), "offset_conv", *_new_members()}


def _require_ordinary_weights(name: str, conv: nn.Conv2d) -> None:
    """Raise ValueError unless weight and bias are parameters, not computed from others."""
    if hasattr(conv, "parametrizations"):
        raise ValueError(f"{name}: the convolution is parametrized; remove that first")
    for part in ("weight", "bias"):
        if part in conv._parameters:
            continue
        hooks = [type(hook).__name__ for hook in conv._forward_pre_hooks.values() if not isinstance(hook, FunctionType)]
        by = f" by {', '.join(hooks)}" if hooks else ""
        raise ValueError(
            f"{name}: its {part} is not a parameter but computed{by} (weight_norm, pruning, ...); remove that first"
        )
    if nn.parameter.is_lazy(conv.weight):
        raise ValueError(f"{name}: its weight has no shape yet ({type(conv).__name__}); run the model once first")


def _require_one_process(model: nn.Module, what: str) -> None:
    """Raise ValueError if the model, or a part of it, is wrapped in DistributedDataParallel."""
    wrapped = [name or "the model" for name, part in model.named_modules() if isinstance(part, DistributedDataParallel)]
    if wrapped:
        raise ValueError(
            f"{wrapped[0]} is a DistributedDataParallel, which does not see new parameters; {what} the model first"
        )
