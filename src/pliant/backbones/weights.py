"""Weights of the paper's networks from files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_PREFIX = "backbone."


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file, or a `.pth` dict of tensors, into a network of this package, in place.

    Names are torchvision's for ResNets (`conv1.weight`, `layer1.0.conv1.weight`, ...), and may all stand after
    `backbone.`, as in what `pliant train` writes for a classifier. Weights may be float16 (they are widened), or
    int8 with a `NAME.scale` beside them, one factor an output channel. Offset branches of deformable layers keep
    their start where the file has none; `fc` may be there or not when the model has none; counts of seen batches
    are ignored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: missing, unknown or wrongly shaped names, all listed; the model is then unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        stored = load_file(path)
    else:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(stored).__name__}")
    weights = _unpacked(stored)
    expected = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    if "fc.weight" not in expected:
        weights = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    problems = [
        f"missing {name} {list(value.shape)}"
        for name, value in expected.items()
        if name not in weights and ".offset_conv." not in name
    ]
    problems += [f"unknown {name} {list(value.shape)}" for name, value in weights.items() if name not in expected]
    problems += [
        f"{name} has shape {list(value.shape)}, expected {list(expected[name].shape)}"
        for name, value in weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {_listed(problems)}")
    model.load_state_dict(weights, strict=False)


def _unpacked(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    prefix = _PREFIX if all(name.startswith(_PREFIX) for name in stored) else ""
    for name, value in stored.items():
        if name.endswith((".scale", "num_batches_tracked")):
            continue
        scale = stored.get(f"{name}.scale")
        wide = value.float()
        weights[name.removeprefix(prefix)] = wide if scale is None else wide * scale.view(-1, *(1,) * (value.dim() - 1))
    return weights


def _listed(problems: list[str], most: int = 12) -> str:
    rest = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + rest
