"""Files of tensors that others wrote, read without running anything in them, and compared with what is expected."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_file(path: str | Path) -> Any:
    """What a `.safetensors` file or one of `torch.save` holds, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither, or holds more than tensors and plain values, which only its pickle's code could make.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise ValueError(
            f"{path} is no file of tensors alone, and is not unpickled, since that may run any code. If you trust it, "
            f"save its tensors anew where its libraries are: torch.save(torch.load(FILE)['state_dict'], OUT). "
            f"{reason.strip()}"
        ) from error
    except Exception as error:  # torch's unpickler meets a damaged file with whatever it stumbles on
        raise ValueError(f"{path} is not a whole file of tensors: {type(error).__name__}: {error}") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, where need be from under `state_dict`.

    Raises:
        FileNotFoundError, ValueError: see `read_file`; also where there is no dict of tensors.
    """
    stored = read_file(path)
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(stored).__name__}")
    return dict(stored)


def require_fit(
    path: str | Path, found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], network: str
) -> None:
    """Raise ValueError unless names and shapes are those expected; it lists all that are missing, unknown, misshapen.

    Args:
        path: of the file, to be named.
        found: its tensors by name.
        expected: shapes by name.
        network: whose weights they should be, to be named.
    """
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [f"unknown {name} {list(value.shape)}" for name, value in found.items() if name not in expected]
    problems += [
        f"{name} has shape {list(value.shape)}, expected {list(expected[name])}"
        for name, value in found.items()
        if name in expected and list(value.shape) != list(expected[name])
    ]
    if problems:
        raise ValueError(f"{path} does not fit {network}: {'; '.join(problems)}")
