"""Networks on the Hugging Face Hub and in folders of the same form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from safetensors.torch import save_file
from torch import nn

from pliant.runs.tensors import read_tensors, require_fit

_F = TypeVar("_F", bound=Callable[..., nn.Module])
_DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")
_DROPPED = ("proxies", "resume_download")  # of huggingface_hub before 1.0


class OnHub(PyTorchModelHubMixin, library_name="pliant", tags=["deformable-convolution"]):
    """huggingface_hub's `save_pretrained`, `push_to_hub` and `from_pretrained` for networks that a function builds.

    A folder contains the weights in `model.safetensors` and the arguments of the function in `config.json`. Keyword
    arguments of `from_pretrained` override them, such as `score_thresh=0.5`; `map_location` is the device. The network
    is returned in evaluation mode. `from_pretrained` raises a ValueError if the folder holds another network, or if
    weights are damaged, missing, unknown or of the wrong shape.
    """

    config: dict[str, Any]
    build: ClassVar[Callable[..., nn.Module]]

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        state = {name: value.detach().cpu().clone().contiguous() for name, value in self.state_dict().items()}
        save_file(state, save_directory / constants.SAFETENSORS_SINGLE_FILE, metadata={"format": "pt"})
        content = {"network": type(self).__name__, **self.config}
        (save_directory / constants.CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, model_id: str, config: dict[str, Any] | None = None, map_location: str = "cpu", **options: Any
    ) -> Self:
        download = {name: options.pop(name) for name in _DOWNLOAD if name in options}
        given = {name: value for name, value in options.items() if name not in _DROPPED}
        network = (config or {}).get("network")
        if config is None or network != cls.__name__:
            raise ValueError(
                f"{model_id} is no {cls.__name__}: {constants.CONFIG_NAME} names {network or 'no network'}"
            )
        if Path(model_id).is_dir():
            path = str(Path(model_id) / constants.SAFETENSORS_SINGLE_FILE)
        else:
            path = hf_hub_download(model_id, constants.SAFETENSORS_SINGLE_FILE, **download)
        model = cls.build(**{name: value for name, value in {**config, **given}.items() if name != "network"})
        assert isinstance(model, cls)
        expected = {name: value.shape for name, value in model.state_dict().items()}
        state = read_tensors(path, expected)
        require_fit(path, state, expected, cls.__name__)
        model.load_state_dict(state)
        return model.to(map_location).eval()


def builds(network: type[OnHub]) -> Callable[[_F], _F]:
    """Register a function as the builder of a network, for its `from_pretrained`."""

    def decorate(function: _F) -> _F:
        network.build = staticmethod(function)
        return function

    return decorate
