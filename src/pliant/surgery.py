"""Make any model deformable, undo it, and group its parameters as the method trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool

_Conv = TypeVar("_Conv", bound=nn.Conv2d)
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

    Args:
        model: any torch.nn model. Convolutions are torch.nn.Conv2d, or subclasses that compute the same (they
            define no forward of their own), padded with zeros.
        where: which ones: a glob pattern on module names (`"layer4.*.conv2"`), a predicate
            `(name, module) -> bool`, or an int, the last n convolutions with a kernel larger than 1, in the order
            of `model.named_modules()`.
        offset_groups, modulated, border, offset_dilation: as for `pliant.nn.DeformConv2d`.

    Returns:
        The model itself (a new module only when the model is itself a convolution that was chosen).

    Raises:
        ValueError: when nothing matches, or a match cannot be deformed; nothing is changed then.
    """
    chosen = _choose(model, where)
    options: dict[str, Any] = {
        "offset_groups": offset_groups,
        "modulated": modulated,
        "border": border,
        "offset_dilation": offset_dilation,
    }
    replacements = {name: _deformed(name, conv, **options) for name, conv in chosen.items()}
    return _replace(model, replacements)


def undeform(model: nn.Module) -> nn.Module:
    """Turn every `DeformConv2d` of a model back into a plain convolution with the same weights, in place.

    The offset branches are dropped. A model without deformable convolutions is returned as it is.
    """
    plain = {name: _plain(module) for name, module in model.named_modules() if isinstance(module, DeformConv2d)}
    return _replace(model, plain)


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


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """All convolutions that are not deformable and not the offset branch of a deformable layer."""
    branches = {
        id(module.offset_conv) for module in model.modules() if isinstance(module, DeformConv2d | DeformPSRoIPool)
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, DeformConv2d) and id(module) not in branches:
            yield name, module


def _choose(model: nn.Module, where: Where) -> dict[str, nn.Conv2d]:
    convolutions = dict(_convolutions(model))
    if isinstance(where, bool) or not (isinstance(where, str | int) or callable(where)):
        raise TypeError(f"where must be a pattern, a predicate or an int, got {where!r}")
    if isinstance(where, int):
        large = [name for name, conv in convolutions.items() if max(conv.kernel_size) > 1]
        if not 0 <= where <= len(large):
            raise ValueError(f"where={where}: the model has {len(large)} convolutions with a kernel larger than 1")
        return {name: convolutions[name] for name in large[len(large) - where :]}
    if isinstance(where, str):
        chosen = {name: conv for name, conv in convolutions.items() if fnmatchcase(name, where)}
    else:
        chosen = {name: conv for name, conv in convolutions.items() if where(name, conv)}
    if not chosen:
        some = ", ".join(list(convolutions)[-5:]) or "none"
        asked = f"where={where!r}" if isinstance(where, str) else "the predicate where"
        raise ValueError(f"{asked} matches no plain convolution of the model; it has for example: {some}")
    return chosen


def _deformed(name: str, conv: nn.Conv2d, **options: Any) -> DeformConv2d:
    if type(conv).forward is not nn.Conv2d.forward:
        raise ValueError(f"{name or 'the model'}: {type(conv).__name__} computes more than torch.nn.Conv2d does")
    if conv.padding_mode != "zeros":
        raise ValueError(f"{name or 'the model'}: padding_mode must be 'zeros', got {conv.padding_mode!r}")
    if hasattr(conv, "parametrizations"):
        raise ValueError(f"{name or 'the model'}: the convolution is parametrized; remove that first")
    try:
        new = DeformConv2d(**_geometry(conv), **options)
    except ValueError as error:
        raise ValueError(f"{name or 'the model'}: {error}") from None
    return _with_weights_of(conv, new)


def _plain(conv: DeformConv2d) -> nn.Conv2d:
    new = nn.Conv2d(**_geometry(conv))
    return _with_weights_of(conv, new)


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    like = {"bias": conv.bias is not None, "device": conv.weight.device, "dtype": conv.weight.dtype}
    return {name: getattr(conv, name) for name in names} | like


def _with_weights_of(old: nn.Conv2d, new: _Conv) -> _Conv:
    """The very same parameters, so that optimizers and weight sharing keep working."""
    new.weight = old.weight
    new.bias = old.bias
    new.train(old.training)
    return new


def _replace(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Put new modules in the place of the named ones, wherever the model holds these."""
    if "" in replacements:
        return replacements[""]
    new = {id(model.get_submodule(name)): module for name, module in replacements.items()}
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if id(module) in new:
                setattr(parent, child, new[id(module)])
    return model
