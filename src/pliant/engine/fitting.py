"""Run the training of a module, new or resumed, and judge one: Lightning's trainer, set up for this engine."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from pliant.engine.callbacks import Checkpoints, StepLines, StepLog
from pliant.engine.logs import CSVLog
from pliant.engine.runs import RunFolder, resume_step
from pliant.engine.sampling import MapDataset, SeededSamples, TrainingBatches
from pliant.engine.training import TrainingModule

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class FitSettings:
    """How a training runs.

    Attributes:
        batch_size: Samples in a step.
        evaluation_batch_size: Samples that are judged at once.
        workers: Processes that load data; 0 loads in this one. The losses do not depend on it.
        checkpoint_every: Steps between checkpoints.
        validate_every: Steps between validations.
        precision: As Lightning takes it: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
        clip: The largest norm of the gradient; None for no limit.
        accelerator: As Lightning takes it: ``"auto"``, ``"cpu"``, ``"gpu"``.
    """

    batch_size: int
    evaluation_batch_size: int = 1
    workers: int = 0
    checkpoint_every: int = 500
    validate_every: int = 1000
    precision: Any = "32-true"
    clip: float | None = None
    accelerator: str = "auto"


class Data(Protocol):
    """What `fit` needs of data: transformed samples, and how they make a batch."""

    @property
    def train(self) -> MapDataset: ...
    @property
    def validation(self) -> MapDataset | None: ...
    @property
    def collate_train(self) -> Collate: ...
    @property
    def collate_evaluation(self) -> Collate: ...


def require_one_process() -> None:
    """Refuse to start as one of several processes, which would all write the same run.

    Raises:
        ValueError: If a launcher such as torchrun says that there are more.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"training in several processes is not supported yet, and WORLD_SIZE is {processes}")


def fit(
    module: TrainingModule,
    data: Data,
    run: RunFolder,
    settings: FitSettings,
    description: Mapping[str, Any],
    groups: Sequence[int] | None = None,
) -> int:
    """Train a module to the end of its schedule.

    If the run holds a checkpoint, training continues from it with the losses that an uninterrupted run has.

    Args:
        module: On the CPU, with its first weights.
        data: To train on and, if there is any, to validate on.
        run: Where logs and checkpoints go.
        settings: How.
        description: For the header of the weights.
        groups: The group of each training sample; a batch holds samples of one group. None for a single one.

    Returns:
        The step training started from: 0 for a new run.

    Raises:
        ValueError: If the checkpoint is damaged.
        FloatingPointError: If the loss is not finite.
    """
    start = resume_step(run.last)
    steps = module.schedule.max_steps
    if start >= steps:
        return start
    batches = TrainingBatches(len(data.train), settings.batch_size, steps, module.seed, start, groups=groups)
    train = DataLoader(
        SeededSamples(data.train, module.seed),
        batch_sampler=batches,
        collate_fn=data.collate_train,
        **_loading(settings.workers),
    )
    validation = None
    if data.validation is not None:
        validation = evaluation_loader(data.validation, data.collate_evaluation, settings)
    validate_every = min(settings.validate_every, steps) if validation is not None else None
    callbacks: list[Callback] = [
        StepLog(),
        Checkpoints(run, settings.checkpoint_every, validate_every, description),
    ]
    interactive = sys.stderr.isatty()
    callbacks.append(RichProgressBar(leave=True) if interactive else StepLines())
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,
            max_steps=steps,
            gradient_clip_val=settings.clip,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            limit_val_batches=None if validation is not None else 0,
            logger=[
                CSVLog(run.path, start),
                TensorBoardLogger(run.path, name="tensorboard", version="", purge_step=start + 1),
            ],
            callbacks=callbacks,
            default_root_dir=run.path,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=interactive,
            # The anchors that torchvision keeps between steps may not be inference tensors.
            inference_mode=False,
        )
        trainer.fit(module, train, validation, ckpt_path=run.last if start else None)
    return start


def judge(module: TrainingModule, loader: DataLoader[Any], settings: FitSettings) -> dict[str, Any]:
    """Evaluate a module.

    Returns:
        What its metrics give; see `DetectionMetrics.compute` and `SegmentationMetrics.compute`.
    """
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stderr.isatty(),
            callbacks=[RichProgressBar()] if sys.stderr.isatty() else None,
            inference_mode=False,
        )
        trainer.test(module, loader, verbose=False)
    return module.results


def evaluation_loader(dataset: MapDataset, collate: Collate, settings: FitSettings) -> DataLoader[Any]:
    """Samples in order."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=settings.evaluation_batch_size,
        shuffle=False,
        collate_fn=collate,
        **_loading(settings.workers),
    )


def _loading(workers: int) -> dict[str, Any]:
    # A generator of its own: making an iterator must not draw from the global one.
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(0),
    }


_HARMLESS = (
    ".*but have no `val_dataloader`.*",  # no split is left for it
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # Lightning's own call
    ".*does not have many workers.*",  # 0 workers are a choice
    ".*your dataloader is not resumable.*",  # TrainingBatches starts at the right step
    ".*module.* in eval mode at the start of training.*",  # frozen batch norms
    ".*GPU available but not used.*",
    ".*The number of training batches .* is smaller than the logging interval.*",  # StepLog logs every step
)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints that do not apply here; all else passes."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
