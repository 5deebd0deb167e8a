"""What is saved when a loss is not finite: the batch, the weights, and which samples made it NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_map

from pliant import launch
from pliant.console import Console
from pliant.engine.batches import SampleKey
from pliant.runs.files import write_torch
from pliant.runs.folder import RunFolder
from pliant.runs.weights import write_weights


class NotFinite(Callback):
    """Writes ``not_finite/batch.pt`` and ``not_finite/weights.safetensors`` when a loss is not finite.

    The first is a dict for `torch.load`: ``step``, ``samples`` (their names), ``culprits`` (those of them whose loss
    alone is not finite), ``batch`` and ``losses``. Of several processes each writes its share, under its rank.

    Args:
        run: Folder to write to.
        names: Gives the names of a step's samples from the number of steps before it.
        description: Header of the weights.
    """

    def __init__(self, run: RunFolder, names: Callable[[int], Sequence[str]], description: Mapping[str, Any]) -> None:
        self.folder = run.path / "not_finite"
        self.names = names
        self.description = dict(description)
        self._batch: Any = None

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if not isinstance(exception, FloatingPointError) or self._batch is None:
            return
        step = trainer.global_step
        samples = list(self.names(step))
        losses = {name: float(loss) for name, loss in module.losses.items()}
        content = {
            "step": step + 1,
            "samples": samples,
            "culprits": [samples[place] for place in self._culprits(module, len(samples))],
            "batch": tree_map(lambda value: value.detach().cpu() if isinstance(value, Tensor) else value, self._batch),
            "losses": losses,
        }
        told = f"alone not finite: {', '.join(content['culprits'])}" if content["culprits"] else "none of them alone"
        try:
            self._keep(content, module)
            kept = f"Batch and weights are in {self.folder}"
        except OSError as error:
            kept = f"Batch and weights could not be kept: {error}"
        Console(stderr=True).print(f"The samples of this step: {', '.join(samples)} ({told}). {kept}")

    def _keep(self, content: Mapping[str, Any], module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        name = "batch.pt" if launch.count() == 1 else f"batch_{launch.rank()}.pt"
        write_torch(self.folder / name, content)
        if launch.is_first():
            description = {**self.description, "step": content["step"] - 1}
            write_weights(self.folder / "weights.safetensors", module.model, description)

    def _culprits(self, module: Any, samples: int) -> list[int]:
        """The places of samples whose loss alone is not finite; unknown, so empty, where processes share the loss."""
        if launch.count() > 1 or samples == 1:
            return [0] * (samples == 1)
        found = []
        for place in range(samples):
            alone = tuple(part[place : place + 1] for part in self._batch)
            try:
                with torch.no_grad():
                    module.training_step(alone, 0)
            except FloatingPointError:
                found.append(place)
        return found


def sample_names(dataset: Any, batches: Iterable[list[SampleKey]]) -> list[str]:
    """The files of the first batch's samples where the data set knows them, else their indices."""
    paths: Sequence[Path] | None = getattr(dataset, "paths", None)
    indices = [index for _, index in next(iter(batches))]
    return [f"sample {index}" if paths is None else str(paths[index]) for index in indices]
