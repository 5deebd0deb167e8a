"""Files of weights that carry the recipe and classes of their network in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from pliant.runs.files import replacing
from pliant.runs.tensors import read_header, read_safetensors

_METADATA_KEY = "pliant"


def write_weights(path: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the parameters and buffers of a model as safetensors, completely or not at all.

    Args:
        path: The file.
        model: The model, whose tensors keep their names and dtypes.
        description: Description from which the model can be rebuilt, stored as JSON in the header.

    Raises:
        OSError: If it cannot be written, as on a full disk.
    """
    # The format does not allow tensors that share memory, so they are copied.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    header = {"format": "pt", _METADATA_KEY: json.dumps(description, ensure_ascii=False)}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(state, temporary, metadata=header)
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote.

    Returns:
        The tensors by name, on the CPU, and the description.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, not a safetensors file, or was not written by `write_weights`.
    """
    state, header = read_safetensors(path)
    return state, _description(path, header)


def read_description(path: str | Path) -> dict[str, Any]:
    """The description alone, without reading the tensors.

    Raises:
        FileNotFoundError, ValueError: See `read_weights`.
    """
    return _description(path, read_header(path))


def _description(path: str | Path, header: Mapping[str, str]) -> dict[str, Any]:
    try:
        description = json.loads(header[_METADATA_KEY])
    except KeyError:
        raise ValueError(
            f"{path} does not say which network it belongs to: its header has no {_METADATA_KEY!r}. "
            "Use weights that `pliant train` wrote."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header's {_METADATA_KEY!r} is not JSON: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(
            f"{path}: the header's {_METADATA_KEY!r} must be a JSON object, got {type(description).__name__}"
        )
    return description
