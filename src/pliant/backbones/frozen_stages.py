"""The stages of the paper's backbones that are not trained: which ones they are, and their maps kept on disk."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Memory
from torch import Tensor, nn

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_FIRST_TRAINED = {"conv3": 1, "conv4": 2, "conv5": 3}


class FrozenStages(nn.Module):
    """A backbone of four stages, of which the first ones are not trained; a mixin.

    conv1 and conv2_x are never trained, as in the paper; `freeze_below` freezes further stages.
    """

    layer3: nn.Sequential
    layer4: nn.Sequential
    _frozen = 1
    _recall: Any = None
    _key: str | None = None

    def freeze_below(self, stage: str = "conv3") -> None:
        """Stop training the stages below `"conv3"`, `"conv4"` or `"conv5"`.

        Raises:
            ValueError: if it is another stage.
        """
        if stage not in _FIRST_TRAINED:
            raise ValueError(f"freeze_below must be one of {', '.join(_FIRST_TRAINED)}, got {stage!r}")
        self._frozen = _FIRST_TRAINED[stage]
        for name in self.frozen_names:
            getattr(self, name).requires_grad_(False)

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """The names of the modules that are not trained, in the order of their execution."""
        return ("conv1", "bn1", "relu", "maxpool", *_STAGES[: self._frozen])

    def keep_frozen_maps(self, folder: str | Path) -> None:
        """Keep the maps of the frozen stages on disk, so that they are computed once for each image.

        A map is found by the pixels of its image and by the stages with their weights. Networks with equal stages
        therefore share the maps, also across processes, and a changed weight or pixel never meets an old map. Images
        are computed one by one; their maps differ from those of a batch by rounding alone. A value takes four bytes: a
        map of conv4 for an image of 224 x 448 pixels takes 1.6 MB.

        Args:
            folder: the folder of the maps.
        """
        self._recall = Memory(folder, mmap_mode="r", verbose=0).cache(_map_of, ignore=["stages"])
        self.register_load_state_dict_post_hook(_forget_weights)

    def frozen_map(self, x: Tensor) -> Tensor:
        """The map `[N, C, h, w]` of the last stage that is not trained."""
        stages = [getattr(self, name) for name in self.frozen_names]
        if self._recall is None:
            return _run(stages, x)
        if self._key is None:
            self._key = self._describe_frozen()
        images = x.detach().cpu().numpy()
        return torch.stack([torch.from_numpy(np.array(self._recall(stages, self._key, one))) for one in images]).to(x)

    def maps(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps of conv4 and conv5."""
        x = self.frozen_map(x)
        x = _run([getattr(self, name) for name in _STAGES[self._frozen : 3]], x)
        return OrderedDict(conv4=x, conv5=self.layer4(x))

    def _describe_frozen(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for name in self.frozen_names:
            stage: nn.Module = getattr(self, name)
            digest.update(f"{name} {stage}".encode())
            for value in stage.state_dict().values():
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _forget_weights(backbone: nn.Module, keys: object) -> None:
    """A hook that runs when weights were loaded."""
    assert isinstance(backbone, FrozenStages)
    backbone._key = None


def _run(stages: Sequence[Callable[..., Tensor]], x: Tensor) -> Tensor:
    for stage in stages:
        x = stage(x)
    return x


@torch.no_grad()
def _map_of(stages: list[nn.Module], weights: str, image: np.ndarray) -> np.ndarray:
    """The map `[C, h, w]` of an image `[3, H, W]`; joblib keeps it under the other two arguments."""
    place = next(stages[0].parameters()).device
    return _run(stages, torch.from_numpy(image)[None].to(place))[0].cpu().numpy()
