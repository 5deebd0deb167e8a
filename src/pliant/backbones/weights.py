"""Weights of the paper's networks from files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from pliant.backbones.input_scale import trained_on_levels
from pliant.runs.tensors import read_tensors, require_fit


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file, or a `.pth` dict of tensors, into a network of this package, in place.

    Names are torchvision's for ResNets (`conv1.weight`, `layer1.0.conv1.weight`, ...). They may all stand after a
    prefix, as after `backbone.` in what `pliant train` writes for a classifier, and below a key of a checkpoint
    (`pliant.runs.tensors.read_tensors`). Weights may be float16 (they are widened), or int8 with a `NAME.scale` beside
    them, one factor an output channel. Offset branches of deformable layers keep their start where the file has none;
    `fc` may be there or not when the model has none; counts of seen batches are ignored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: missing, unknown or wrongly shaped names, listed, or a ResNet whose images had another scale, as
            torchvision's; the model is then unchanged.
    """
    expected = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    weights = stored_weights(path, expected)
    if "fc.weight" not in expected:
        weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    branches = {name for name in expected if ".offset_conv." in name}
    shapes = {name: value.shape for name, value in expected.items()}
    require_fit(path, weights, shapes, type(model).__name__, optional=branches, most=12)
    _require_levels(path, weights)
    model.load_state_dict(weights, strict=False)


def stored_weights(path: str | Path, expected: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a file by name, as float32, in the forms that `load_weights` reads.

    Args:
        path: of the file.
        expected: names of the network; see `pliant.runs.tensors.read_tensors`.
    """
    stored, weights = read_tensors(path, expected), {}
    for name, value in stored.items():
        if name.endswith((".scale", "num_batches_tracked")):
            continue
        scale = stored.get(f"{name}.scale")
        wide = value.float()
        weights[name] = wide if scale is None else wide * scale.view(-1, *(1,) * (value.dim() - 1))
    return weights


def _require_levels(path: str | Path, weights: dict[str, Tensor]) -> None:
    """Raise ValueError if the network has learned from images with a deviation of one."""
    if trained_on_levels(weights.get("conv1.weight"), weights.get("bn1.running_var")) is False:
        raise ValueError(
            f"{path} was trained on images divided by their deviation, as torchvision's and timm's ResNets are; those "
            "have their strides elsewhere too. Take backbone=timm/resnet50 or timm/resnet101 with this file"
        )
