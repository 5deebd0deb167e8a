"""The weights of a backbone inside a file of any network: where they are, and what they are if they do not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pliant.backbones.aligned_inception_resnet import AlignedInceptionResNet
from pliant.backbones.caffe_resnet import CaffeResNet
from pliant.backbones.input_scale import trained_on_levels
from pliant.backbones.pyramid import TimmPyramid
from pliant.backbones.timm_backbone import TimmBackbone, timm_features, whole_names

_DEEPEST = 6  # most parts of a prefix
_MOST_LISTED = 8
_BLOCK = re.compile(r"(?:^|\.)layer([1-4])\.(\d+)\.conv(\d)\.weight$")
_RESNETS = {  # blocks of the four stages, and convolutions of a block
    ((2, 2, 2, 2), 2): "ResNet-18",
    ((3, 4, 6, 3), 2): "ResNet-34",
    ((3, 4, 6, 3), 3): "ResNet-50",
    ((3, 4, 23, 3), 3): "ResNet-101",
    ((3, 8, 36, 3), 3): "ResNet-152",
}


class MisfitError(ValueError):
    """Weights do not fit a backbone; the message says why, without naming the file."""


@dataclass(frozen=True)
class Body:
    """The backbone of a network.

    Attributes:
        module: the module that computes its maps, or a classifier's scores.
        prefix: the prefix of its parameters in the network, with the dot.
        name: as in the recipe.
        last: prefixes of the layers that a classifier has after its features.
        options: options of timm for its features; None if it is not features of a timm model.
    """

    module: nn.Module
    prefix: str
    name: str
    last: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None

    @property
    def caffe(self) -> bool:
        """Whether it is a ResNet of the paper, in Caffe's form."""
        return isinstance(self.module, CaffeResNet)

    def expected(self) -> dict[str, Tensor]:
        """Its tensors by name that any weights must have: all but offset branches, counters and the last layers."""
        return {
            name: value
            for name, value in self.module.state_dict().items()
            if not _is_extra(name) and not name.startswith(self.last)
        }

    def branches(self) -> dict[str, Tensor]:
        """The tensors of its offset branches by name."""
        return {name: value for name, value in self.module.state_dict().items() if ".offset_conv." in name}


@dataclass(frozen=True)
class BodyWeights:
    """The weights of a backbone that a file holds.

    Attributes:
        state: all of `Body.expected`, and the offset branches that fit, by the backbone's own names.
        names: the names in the file of all tensors that belong to its backbone.
        unused: those of them that are offset branches and do not fit.
    """

    state: dict[str, Tensor]
    names: set[str]
    unused: list[str]


def find_body(model: nn.Module, name: str) -> Body:
    """The backbone of a network of this package; for another network, its `backbone`, or all of it.

    Args:
        model: the network.
        name: name of the backbone in the recipe.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, TimmBackbone | TimmPyramid):
            return Body(module.body, f"{prefix}.body.", name, options=module.maps.options)
        if isinstance(module, CaffeResNet | AlignedInceptionResNet):
            return Body(module, f"{prefix}.", name, ("fc.",))
    inner = getattr(model, "backbone", None)
    if not isinstance(inner, nn.Module):
        return Body(model, "", name)
    last = getattr(inner, "pretrained_cfg", {}).get("classifier") or ()
    return Body(inner, "backbone.", name, tuple(f"{layer}." for layer in ((last,) if isinstance(last, str) else last)))


def read_body(body: Body, tensors: Mapping[str, Tensor]) -> BodyWeights:
    """Find the weights of a backbone among all tensors of a file, which are float32.

    Raises:
        MisfitError: if less than the backbone fits, or more than it is there.
    """
    expected = body.expected()
    prefix = most_fitting_prefix(tensors, expected)
    found = _below(tensors, prefix)
    parts = {name.partition(".")[0] for name in expected}
    if body.options is not None and not set(expected) <= set(found):
        # timm names the layers of a whole model otherwise than those of its features.
        whole = whole_names(body.name)
        outer = most_fitting_prefix(tensors, whole)
        complete = {name: value for name, value in _below(tensors, outer).items() if name in whole}
        if {name: value.shape for name, value in complete.items()} == whole:
            prefix, found = outer, timm_features(body.name, complete, body.options)
            parts |= {name.partition(".")[0] for name in whole}
    _require_whole(body, expected, found)
    _require_scale(body, found)
    state = {name: found[name] for name in expected}
    state |= {name: found[name] for name in fitting_layers(body.branches(), found)}
    names = {name for name in tensors if name.startswith(prefix) and name[len(prefix) :].partition(".")[0] in parts}
    unused = [name for name in sorted(names) if ".offset_conv." in name and name[len(prefix) :] not in state]
    return BodyWeights(state, names, unused)


def fitting_layers(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors of those layers that a file has completely, with the expected shapes."""
    layers: dict[str, list[str]] = {}
    for name in expected:
        if not name.endswith("num_batches_tracked"):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [
        name
        for names in layers.values()
        if all(name in found and found[name].shape == expected[name].shape for name in names)
        for name in names
    ]


def most_fitting_prefix(names: Iterable[str], wanted: Iterable[str]) -> str:
    """The prefix without which the most names are wanted ones; the shortest of equally good ones."""
    known = set(wanted)
    fitting: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for cut in range(min(len(parts), _DEEPEST + 1)):
            if ".".join(parts[cut:]) in known:
                fitting["".join(f"{part}." for part in parts[:cut])] += 1
    return max(fitting, key=lambda prefix: (fitting[prefix], -len(prefix)), default="")


def said_resnet(names: Iterable[str]) -> str | None:
    """Which ResNet some tensors are of, by their names: `"ResNet-50"`; None if they are of none."""
    blocks: dict[int, set[int]] = {}
    convolutions = 0
    for match in filter(None, map(_BLOCK.search, names)):
        blocks.setdefault(int(match[1]), set()).add(int(match[2]))
        convolutions = max(convolutions, int(match[3]))
    one, two, three, four = (len(blocks.get(stage, ())) for stage in (1, 2, 3, 4))
    return _RESNETS.get(((one, two, three, four), convolutions))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _is_extra(name: str) -> bool:
    return ".offset_conv." in name or name.endswith("num_batches_tracked")


def _require_whole(body: Body, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    parts = {name.partition(".")[0] for name in expected}
    missing = [name for name in expected if name not in found]
    more = [
        name
        for name in found
        if name.partition(".")[0] in parts
        and name not in expected
        and not _is_extra(name)
        and ".conv_offset." not in name
    ]
    shapes = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    if not missing and not more and not shapes:
        return
    own, theirs = said_resnet(expected), said_resnet(found)
    if theirs is not None and theirs != own:
        form = "" if body.caffe else "timm/"
        here = body.name if own is None else f"{body.name}, a {own}"
        setting = f"{form}{theirs.lower().replace('-', '')}"
        known = not body.caffe or theirs in ("ResNet-50", "ResNet-101")
        advice = f"set backbone={setting}, or give" if known else "give"
        wanted = body.name if own is None else f"a {own}"
        raise MisfitError(f"it is a {theirs}, and the backbone is {here}: {advice} weights of {wanted}")
    listed = [f"missing {name} {list(expected[name].shape)}" for name in missing]
    listed += [f"unknown {name} {list(found[name].shape)}" for name in more]
    listed += [f"{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}" for name in shapes]
    rest = f"; and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    fitting = len(expected) - len(missing) - len(shapes)
    raise MisfitError(
        f"{fitting} of the {len(expected)} tensors of the backbone {body.name} fit: "
        f"{'; '.join(listed[:_MOST_LISTED])}{rest}"
    )


def _require_scale(body: Body, found: Mapping[str, Tensor]) -> None:
    """Raise if a ResNet was trained on images of another scale: torchvision's and Caffe's have the same names."""
    levels = trained_on_levels(found.get("conv1.weight"), found.get("bn1.running_var"))
    if body.caffe and levels is False:
        raise MisfitError(
            "it was trained on images divided by their standard deviation, like torchvision's and timm's ResNets, "
            f"whose strides differ too: set backbone=timm/{body.name}"
        )
    if not body.caffe and levels is True and said_resnet(found) is not None:
        raise MisfitError(
            "it was trained on images in 0..255 minus a mean, like Caffe's ResNets, whose strides differ too: set "
            f"backbone={body.name.removeprefix('timm/').partition('.')[0]}"
        )
