"""The start of a training from earlier weights: what of them a network takes, and what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pliant.backbones.caffe_resnet import DEPTHS
from pliant.backbones.transfer import Body, MisfitError, find_body, fitting_layers, read_body
from pliant.recipes.base import Recipe
from pliant.runs.initial_weights import InitialWeights, network_of
from pliant.tasks.task import build_model

_ANOTHER = "pliant's class that no data has"
# Fields under which the same tensors compute something else; another value is worth a line.
_MEANING = ("border", "modulated", "padded_pool", "image_mean", "framing", "sampling", "anchor_scales")


@dataclass(frozen=True)
class Start:
    """What a network took from earlier weights.

    Attributes:
        source: The file.
        what: What it is.
        loaded: Parts of the network that were loaded.
        left_out: Parts of the file that were not, each with the reason.
        missing: Parts of the network that the file lacks, each with how they start.
        differs: Fields of the recipe that had another value in the training of these weights.
    """

    source: str
    what: str
    loaded: list[str]
    left_out: dict[str, str]
    missing: dict[str, str]
    differs: dict[str, str]

    def lines(self) -> dict[str, str]:
        """The table that `pliant train` prints."""
        shown = {"weights": f"{self.source} ({self.what})", "loaded": ", ".join(self.loaded)}
        for title, parts in (("left out", self.left_out), ("missing", self.missing), ("differs", self.differs)):
            reasons: dict[str, list[str]] = {}
            for part, reason in parts.items():
                reasons.setdefault(reason, []).append(part)
            if parts:
                shown[title] = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        return shown

    def record(self) -> dict[str, Any]:
        """For ``recipe.json``."""
        return asdict(self)


def start_from(model: nn.Module, initial: InitialWeights, recipe: Recipe, classes: Sequence[str]) -> Start:
    """Load earlier weights into a new network, in place.

    The backbone must be there completely. Offset branches that the file lacks start at zero, so that a plain network
    starts a deformable one; those that the network lacks are left out. The other layers are loaded if the file is of
    the same network, each completely or not at all; those whose size depends on the number of classes, only if the
    classes are the same, in the same order.

    Raises:
        ValueError: If less than the backbone fits. The model is unchanged.
    """
    body = find_body(model, recipe.backbone)
    try:
        _require_form(body, initial)
        found = read_body(body, initial.tensors)
    except MisfitError as error:
        other = initial.backbone not in (None, recipe.backbone) and "set backbone=" not in str(error)
        advice = f"; it was trained with backbone={initial.backbone}, which fits" if other else ""
        raise ValueError(f"weights: {initial.path} ({initial.what}) does not fit: {error}{advice}") from None
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    update = {f"{body.prefix}{name}": value for name, value in found.state.items()}
    rest = {name: value for name, value in initial.tensors.items() if name not in found.names}
    left_out = {_layer(name): "offset branches that the network does not have so" for name in found.unused}
    if initial.network == network_of(recipe):
        heads = {name: value for name, value in state.items() if not _in_features(name, body)}
        of_classes = set() if initial.classes == tuple(classes) else _of_classes(model, recipe, classes)
        wanted = {name: value for name, value in heads.items() if _layer(name) not in of_classes}
        update |= {name: rest.pop(name) for name in fitting_layers(wanted, rest)}
        left_out |= {
            _layer(name): "for other classes" if _layer(name) in of_classes else _why(name, rest, heads)
            for name in rest
        }
    else:
        left_out |= {_part(name): "not of this network" for name in rest}
    model.load_state_dict(update, strict=False)
    return Start(
        source=str(initial.path),
        what=initial.what,
        loaded=_loaded(update, body),
        left_out=_shortened(left_out),
        missing=_missing(state, update),
        differs=_differing(initial.fields, recipe),
    )


def _require_form(body: Body, initial: InitialWeights) -> None:
    """Raise if the weights are of a ResNet in another form, whose tensors have the same names and shapes."""
    theirs = initial.backbone
    if theirs is None or body.caffe == (theirs in DEPTHS):
        return
    models = {name.removeprefix("timm/").partition(".")[0] for name in (theirs, body.name)}
    if models <= set(DEPTHS):
        raise MisfitError(
            f"it was trained with backbone={theirs}, and the recipe has backbone={body.name}, whose strides and scale "
            f"of images differ: set backbone={theirs}"
        )


def _of_classes(model: nn.Module, recipe: Recipe, classes: Sequence[str]) -> set[str]:
    """The layers whose size depends on the number of classes: those that differ in a network with one class more."""
    with torch.random.fork_rng(devices=[]):
        other = build_model(recipe, [*classes, _ANOTHER], pretrained=False).state_dict()
    state = model.state_dict()
    return {_layer(name) for name, value in state.items() if name not in other or other[name].shape != value.shape}


def _why(name: str, tensors: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> str:
    if name not in heads:
        return "not in the network"
    if tensors[name].shape != heads[name].shape:
        return f"{list(tensors[name].shape)} there, {list(heads[name].shape)} here"
    return "its layer does not fit completely"


def _loaded(update: Mapping[str, Tensor], body: Body) -> list[str]:
    features = [name for name in update if _in_features(name, body)]
    heads = dict.fromkeys(_part(name) for name in update if not _in_features(name, body))
    return [f"the backbone {body.name} ({len(features)} tensors)", *heads]


def _missing(state: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> dict[str, str]:
    lacking = [name for name in state if name not in update]
    branches = {_layer(name) for name in lacking if "offset_conv" in name or "offset_fc" in name}
    found = {f"{len(branches)} offset branches": "start at zero"} if branches else {}
    taken = {_part(name) for name in update}
    anew = [_layer(name) if _part(name) in taken else _part(name) for name in lacking if _layer(name) not in branches]
    return found | dict.fromkeys(anew, "starts anew")


def _differing(fields: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    found = {}
    for name in _MEANING:
        own = getattr(recipe, name, None)
        theirs = fields.get(name, own)
        if (tuple(theirs) if isinstance(theirs, list) else theirs) != own:
            found[name] = f"{theirs} there, {own} here"
    return found


def _shortened(left_out: dict[str, str], most: int = 12) -> dict[str, str]:
    if len(left_out) <= most:
        return left_out
    kept = dict(list(left_out.items())[:most])
    return {**kept, f"{len(left_out) - most} more layers": "as well"}


def _in_features(name: str, body: Body) -> bool:
    """Whether a tensor of the network is of its backbone, without the last layer of a classifier."""
    return name.startswith(body.prefix) and not name.removeprefix(body.prefix).startswith(body.last)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.count(".") > 1 else _layer(name)
