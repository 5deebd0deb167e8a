"""Reading files of tensors from other sources without running code from them, and checking names and shapes."""

from __future__ import annotations

import contextlib
import mmap
import pickle
import zipfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# The keys under which checkpoints hold the weights; the first one present is used.
_WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "network",
    "net",
    "module",
    "ema",
    "state_dict_ema",
)
_COMPILED = "_orig_mod"
_DEEPEST = 6  # most parts of a name, and most nested dicts, that are searched
_AVERAGED = "n_averaged"  # the count of torch.optim.swa_utils.AveragedModel


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a `.safetensors` file by name, on the CPU, and its header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or has another format.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_header(path: str | Path) -> dict[str, str]:
    """The header of a `.safetensors` file alone; see `read_safetensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def read_file(path: str | Path) -> Any:
    """The content of a `.safetensors` file or one of `torch.save`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or holds other objects than tensors and plain values (unpickling those would run code
            from the file), or would take more memory than the file has bytes.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    try:
        _require_no_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise ValueError(
            f"{path} holds other objects than tensors, and is not unpickled, since that may run any code. If you trust "
            f"it, save its tensors again where its libraries are: torch.save(torch.load(FILE)['state_dict'], OUT). "
            f"{reason.strip()}"
        ) from error
    except Exception as error:  # a damaged file can make torch's unpickler raise any exception
        raise ValueError(f"{path} is not a complete file of tensors: {type(error).__name__}: {error}") from error


def read_tensors(path: str | Path, expected: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file by name, wherever a checkpoint has them.

    Training programs store the weights under a key of the checkpoint, and wrappers add one or several prefixes to every
    name (`module.`, `model.`, `backbone.`). Both are removed, and so is `_orig_mod.`, which torch.compile adds, at any
    place in a name.

    Args:
        path: the file.
        expected: names of the network that the weights are for. A prefix of all names is removed if more of them
            match without it.

    Raises:
        FileNotFoundError, ValueError: see `read_file`; also a ValueError without a dict of tensors.
    """
    return without_prefix(require_tensors(path, unwrapped(read_file(path))), expected)


def unwrapped(stored: Any) -> Any:
    """The dict of tensors in a checkpoint, from under the key that holds it; without one, `stored` itself."""
    for _ in range(_DEEPEST):
        if not isinstance(stored, dict) or all(isinstance(value, Tensor) for value in stored.values()):
            break
        below = [stored[key] for key in _WRAPPERS if isinstance(stored.get(key), dict) and stored[key]]
        below += [value for value in stored.values() if _is_state(value)]
        if not below:
            break
        stored = next((value for value in below if _is_state(value)), below[0])
    return stored


def without_prefix(tensors: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Remove the prefix that all names share, if more of the names are expected ones without it."""
    plain = {name.replace(f"{_COMPILED}.", ""): value for name, value in tensors.items()}
    found = plain if len(plain) == len(tensors) else dict(tensors)
    counted = {name: value for name, value in found.items() if name != _AVERAGED}
    wanted, names = set(expected), [name.split(".") for name in counted]
    if not wanted or not names:
        return found
    shared = zip(*(parts[:-1][:_DEEPEST] for parts in names), strict=False)
    common = list(takewhile(lambda parts: len(set(parts)) == 1, shared))

    def fitting(length: int) -> int:
        return len(wanted.intersection(".".join(parts[length:]) for parts in names))

    best = max(range(len(common) + 1), key=fitting)  # the shortest of equally good prefixes
    if not best:
        return found
    return {".".join(parts[best:]): value for parts, value in zip(names, counted.values(), strict=True)}


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def require_tensors(path: str | Path, stored: Any) -> dict[str, Tensor]:
    """The content of a file, which must be a dict of dense CPU tensors by name.

    Raises:
        ValueError: it is something else, or a tensor has more elements than its storage.
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
    path: str | Path,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    network: str,
    *,
    optional: Container[str] = (),
    most: int | None = None,
) -> None:
    """Raise ValueError, which lists missing, unknown and misshapen tensors, unless names and shapes are as expected.

    Args:
        path: the file, for the message.
        found: its tensors by name.
        expected: the expected shapes by name.
        network: the network that the weights should fit, for the message.
        optional: expected names that may be missing.
        most: upper limit of the number of listed problems; None for no limit.
    """
    problems = [
        f"missing {name} {list(shape)}"
        for name, shape in expected.items()
        if name not in found and name not in optional
    ]
    problems += [f"unknown {name} {list(value.shape)}" for name, value in found.items() if name not in expected]
    problems += [
        f"{name} has shape {list(value.shape)}, expected {list(expected[name])}"
        for name, value in found.items()
        if name in expected and list(value.shape) != list(expected[name])
    ]
    if problems:
        listed = "; ".join(problems[:most])
        rest = f"; and {len(problems) - most} more" if most is not None and len(problems) > most else ""
        raise ValueError(f"{path} does not fit {network}: {_prefix_said(found, expected)}{listed}{rest}")


def _prefix_said(found: Iterable[str], expected: Mapping[str, Any]) -> str:
    """A note on a prefix of some names without which more of them would fit; empty if there is none."""
    names = list(found)
    fitting = Counter(
        name[: -len(rest)]
        for name in names
        for rest in (name.split(".", cut)[-1] for cut in range(1, min(name.count("."), _DEEPEST) + 1))
        if rest in expected
    )
    if not fitting:
        return ""
    prefix, count = fitting.most_common(1)[0]
    if count <= sum(name in expected for name in names):
        return ""
    return (
        f"{count} of its {len(names)} names would fit without the prefix {prefix!r}, which is removed only if all "
        "names have it; "
    )


def _require_no_bomb(path: Path) -> None:
    """Raise ValueError if reading a file of `torch.save` could take far more memory than the file has bytes.

    `torch.save` neither compresses nor writes a bytearray, which the safe unpickler would create at any length.
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
