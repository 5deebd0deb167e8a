"""Files of tensors that others wrote, read without running anything in them, and compared with what is expected."""

from __future__ import annotations

import mmap
import pickle
import zipfile
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
        ValueError: it is neither, or holds more than tensors and plain values, which only its pickle's code could make,
            or would take more memory than the file has bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _require_no_bomb(path)
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
    return require_tensors(path, stored)


def require_tensors(path: str | Path, stored: Any) -> dict[str, Tensor]:
    """What a file holds, if that is a dict of ordinary tensors by name.

    Raises:
        ValueError: it is something else, or a tensor has more numbers than are stored for it.
    """
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(stored).__name__}")
    for name, value in stored.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} must name its tensors, got the key {name!r:.200}")
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise ValueError(f"{path} must hold dense tensors, got {name} in {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {name} has shape {list(value.shape)}, but only {value.untyped_storage().nbytes()} bytes"
            )
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


def _require_no_bomb(path: Path) -> None:
    """Raise ValueError if reading a file of `torch.save` could take far more memory than the file has bytes.

    `torch.save` compresses nothing, and writes no bytearray, which the safe unpickler would make of any length.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"\nbytearray\n") >= 0:
                raise ValueError("it holds a bytearray")
            if content[:4] != b"PK\x03\x04":
                return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    total = sum(entry.file_size for entry in entries)
    if total > path.stat().st_size:
        raise ValueError(f"its parts claim {total} bytes, more than the {path.stat().st_size} of the file")
