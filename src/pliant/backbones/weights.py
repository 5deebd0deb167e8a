"""Load weights of the paper's networks from files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from pliant.backbones.input_scale import trained_on_levels
from pliant.runs.tensors import read_tensors, require_fit


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file, or a `.pth` dict of tensors, into a network of this package, in place.

    Names are those of torchvision for ResNets (`conv1.weight`, `layer1.0.conv1.weight`, ...). All of them may have a
    prefix, such as `backbone.` in the file that `pliant train` writes for a classifier, and be below a key of a
    checkpoint (`pliant.runs.tensors.read_tensors`). Weights may be float16, or int8 with a tensor `NAME.scale` of one
    factor per output channel; they are converted to float32. Offset branches that the file lacks keep their initial
    values. If the model has no `fc`, that of the file is ignored, and so are the counters of batch norms.

    Args:
        model: the network.
        path: the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if parameters are missing, unknown or of the wrong shape, or the file is of a ResNet trained on
            images of another scale, as torchvision's are. The model is unchanged.
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
        path: the file.
        expected: names of the network's parameters; see `pliant.runs.tensors.read_tensors`.
    """
    return as_float(read_tensors(path, expected))


def as_float(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as float32, from the forms that `load_weights` reads, without the counters of batch norms."""
    weights = {}
    for name, value in stored.items():
        if name.endswith((".scale", "num_batches_tracked")):
            continue
        scale = stored.get(f"{name}.scale")
        wide = value.float()
        weights[name] = wide if scale is None else wide * scale.view(-1, *(1,) * (value.dim() - 1))
    return weights


def _require_levels(path: str | Path, weights: dict[str, Tensor]) -> None:
    """Raise ValueError if the network was trained on images divided by their standard deviation."""
    if trained_on_levels(weights.get("conv1.weight"), weights.get("bn1.running_var")) is False:
        raise ValueError(
            f"{path} was trained on images divided by their standard deviation, like torchvision's and timm's ResNets, "
            "whose strides differ too. Use backbone=timm/resnet50 or timm/resnet101 with this file"
        )
