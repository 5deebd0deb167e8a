"""A checkpoint in two files: the weights, and everything else that resuming needs. No weights are stored twice.

`last.safetensors` holds the weights. `last.ckpt` holds the optimizer and the position in the training, and belongs to
the weights of one step. The two must change together, whenever a process is killed:

1. The new weights are written to a file of their own, `.last.STEP.safetensors`.
2. `last.ckpt` replaces the earlier one. From here on, the checkpoint is the new one.
3. The new weights replace `last.safetensors`.

A reader takes the file of the checkpoint's step, and `last.safetensors` if there is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pliant.runs.files import replacing, write_torch
from pliant.runs.weights import read_description, read_weights, write_weights

_PREFIX = "model."  # of the network's tensors in the state of a `TrainingModule`
_SEPARATE = "weights_apart"  # marks a checkpoint without them


def write_without_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of Lightning without the network's tensors, which `stage` has written.

    Raises:
        OSError: If it cannot be written, as on a full disk.
    """
    rest = {name: value for name, value in content["state_dict"].items() if not name.startswith(_PREFIX)}
    write_torch(path, {**content, "state_dict": rest, _SEPARATE: True})


def complete(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the network's tensors, from wherever they are."""
    if not content.get(_SEPARATE):
        return content
    state, _ = read_weights(weights_of(path, int(content["global_step"])))
    network = {f"{_PREFIX}{name}": value for name, value in state.items()}
    return {**content, "state_dict": {**network, **content["state_dict"]}}


def step_of(path: Path) -> int:
    """The number of steps before a checkpoint was written, whose weights are there.

    Raises:
        ValueError: If a file is damaged or not a checkpoint, or the weights are missing or of another step.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step = int(content["global_step"])
    except Exception as error:
        raise ValueError(f"{path} is not a complete checkpoint: {error}") from error
    if content.get(_SEPARATE):
        weights_of(path, step)
    return step


def weights_of(path: Path, step: int) -> Path:
    """The file of the weights that belong to a checkpoint.

    Raises:
        ValueError: If there is none of its step.
    """
    last = path.with_suffix(".safetensors")
    for place in (_staged(path, step), last):
        with contextlib.suppress(FileNotFoundError):
            found = read_description(place).get("step")
            if found == step:
                return place
            raise ValueError(f"{path} belongs to the weights of step {step}, and {place} has those of step {found}")
    raise ValueError(f"{path} belongs to the weights of step {step}, and {last} is missing")


def stage(path: Path, model: nn.Module, description: Mapping[str, Any]) -> Path:
    """Write the weights that will belong to the next checkpoint; `description` holds its step."""
    staged = _staged(path, description["step"])
    write_weights(staged, model, description)
    return staged


def accept(path: Path, staged: Path) -> None:
    """Let the staged weights replace the earlier ones, once the checkpoint is written."""
    staged.replace(path.with_suffix(".safetensors"))


def settle(path: Path) -> None:
    """Finish what a killed process left: accept the staged weights of a checkpoint, and remove all others."""
    step = step_of(path) if path.is_file() else None
    for staged in path.parent.glob(f".{path.stem}.*.safetensors"):
        if step is not None and staged == _staged(path, step):
            accept(path, staged)
        else:
            staged.unlink()


def share(source: Path, path: Path) -> None:
    """Make a file the same as another, which takes no space where the file system has hard links.

    The files of a run are replaced and never changed, so one does not change with the other.
    """
    with replacing(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _staged(path: Path, step: int) -> Path:
    return path.with_name(f".{path.stem}.{step}.safetensors")
