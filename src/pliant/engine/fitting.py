"""Training, resumed training and evaluation of a module with Lightning's trainer."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from timm.layers import convert_sync_batchnorm
from torch import distributed, nn

from pliant import launch
from pliant.console import Progress
from pliant.engine.batches import MapDataset, SeededSamples, TrainingBatches
from pliant.engine.callbacks import Checkpoints, Interruption, ShowProgress, StepLog, Watch, WholeFiles
from pliant.engine.csv_log import CSVLog
from pliant.engine.loader import Loader
from pliant.engine.nonfinite_loss import NotFinite, sample_names
from pliant.engine.training import TrainingModule
from pliant.runs.checkpoints import settle
from pliant.runs.folder import RunFolder, holding, resume_step

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class FitSettings:
    """How a training runs.

    Attributes:
        batch_size: Number of samples in a step, over all processes.
        evaluation_batch_size: Number of samples that are evaluated at once.
        workers: Number of processes that load data; with 0, this one does. The losses do not depend on it.
        checkpoint_every: Number of steps between checkpoints.
        validate_every: Number of steps between validations.
        precision: As Lightning takes it: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
        clip: Upper limit of the gradient's norm; None for no limit.
        accelerator: As Lightning takes it: ``"auto"``, ``"cpu"``, ``"gpu"``.
        device: The device, in place of one that `accelerator` allows; None for any of these.
        full_checkpoints: Whether checkpoints contain the weights; see `RunFolder`.
    """

    batch_size: int
    evaluation_batch_size: int = 1
    workers: int = 0
    checkpoint_every: int = 500
    validate_every: int = 1000
    precision: Any = "32-true"
    clip: float | None = None
    accelerator: str = "auto"
    device: torch.device | None = None
    full_checkpoints: bool = False


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


def fit(
    module: TrainingModule,
    data: Data,
    run: RunFolder,
    settings: FitSettings,
    description: Mapping[str, Any],
    groups: Sequence[int] | None = None,
    watch: Callable[[int], None] | None = None,
) -> int:
    """Train a module to the end of its schedule.

    If the run has a checkpoint, training continues from it with the losses of an uninterrupted run. Processes that
    torchrun started share every batch and every validation; the first one writes the run.

    Args:
        module: On the CPU, with its initial weights. Batch norms that are trained are synchronised over processes.
        data: Data sets to train on and, if there is one, to validate on.
        run: Folder for logs and checkpoints.
        settings: How the training runs.
        description: Header of the files of weights.
        groups: Group of each training sample; a batch holds samples of one group. None for a single group.
        watch: Called with the number of finished steps after each step, in place of a progress bar.

    Returns:
        The step training started from: 0 for a new run.

    Raises:
        ValueError: If the checkpoint is damaged, another process trains into the run, or the processes cannot share
            the batch, the validation or the norms.
        FloatingPointError: If the loss is not finite.
        ConnectionError: If another process has exited.
    """
    with holding(run.path) if launch.is_first() else contextlib.nullcontext():
        if launch.is_first():
            settle(run.last)
        start = resume_step(run.last)
        if start < module.schedule.max_steps:
            _fit(module, data, run, settings, description, groups, watch, start)
    return start


def _fit(
    module: TrainingModule,
    data: Data,
    run: RunFolder,
    settings: FitSettings,
    description: Mapping[str, Any],
    groups: Sequence[int] | None,
    watch: Callable[[int], None] | None,
    start: int,
) -> None:
    steps = module.schedule.max_steps
    batches = partial(
        TrainingBatches,
        len(data.train),
        settings.batch_size,
        steps,
        module.seed,
        groups=groups,
        rank=launch.rank(),
        world_size=launch.count(),
    )
    train = Loader(
        SeededSamples(data.train, module.seed),
        data.collate_train,
        batch_sampler=batches(start),
        **_loading(settings.workers),
    )
    validation = None
    if data.validation is not None:
        validation = _evaluation_loader(data.validation, data.collate_evaluation, settings)
    validate_every = min(settings.validate_every, steps) if validation is not None else None
    interruption = Interruption()
    progress = Progress(quiet=watch is not None or not launch.is_first())
    callbacks: list[Callback] = [
        StepLog(),
        interruption,
        NotFinite(run, lambda step: sample_names(data.train, batches(step)), description),
        Checkpoints(
            run,
            settings.checkpoint_every,
            validate_every,
            description,
            interruption,
            full=settings.full_checkpoints,
        ),
        Watch(watch) if watch else ShowProgress(progress),
    ]
    loggers: list[Logger] = []
    if launch.is_first():
        loggers.append(CSVLog(run.path, start))
        loggers.append(TensorBoardLogger(run.path, name="tensorboard", version="", purge_step=start + 1))
    options: dict[str, Any] = {
        "max_steps": steps,
        "gradient_clip_val": settings.clip,
        "val_check_interval": validate_every,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0 if validation is None else None,
        "logger": loggers,
        "callbacks": callbacks,
        "plugins": WholeFiles(full=settings.full_checkpoints),
        "default_root_dir": run.path,
    }
    with _trainer(module, settings, options) as trainer:
        _synchronise_norms(module, trainer)
        with _ending_plainly(), progress:
            trainer.fit(module, train, validation, ckpt_path=run.last if start else None)


def evaluate(
    module: TrainingModule, dataset: MapDataset, collate: Collate, settings: FitSettings, *, show: bool = True
) -> dict[str, Any]:
    """Evaluate a module. Processes that torchrun started share the samples, and all have the results.

    Args:
        module: The network with its metrics.
        dataset: Samples to evaluate on.
        collate: Makes a batch of samples.
        settings: How the evaluation runs.
        show: Whether to show progress.

    Returns:
        What its metrics give; see `DetectionMetrics.compute` and `SegmentationMetrics.compute`.

    Raises:
        ValueError: If there are more processes than samples.
        ConnectionError: If another process has exited.
    """
    loader = _evaluation_loader(dataset, collate, settings)
    progress = Progress(quiet=not (show and launch.is_first()))
    options = {"logger": False, "callbacks": [ShowProgress(progress)]}
    with _trainer(module, settings, options) as trainer, _ending_plainly(), progress:
        trainer.test(module, loader, verbose=False)
    return module.results


@contextlib.contextmanager
def _trainer(module: TrainingModule, settings: FitSettings, options: Mapping[str, Any]) -> Iterator[lightning.Trainer]:
    """A trainer of Lightning for a module, which holds nothing once the block is left, however it is left.

    A trainer, its loops and its module refer to each other. Without this, weights, momentum and gradients stay in
    memory until Python's garbage collector runs, which counts objects and not their size.
    """
    with _quiet():
        trainer = lightning.Trainer(**_devices(settings), **options)
        try:
            yield trainer
        finally:
            module.trainer = None
            vars(trainer).clear()


def _evaluation_loader(dataset: MapDataset, collate: Collate, settings: FitSettings) -> Loader:
    """This process's share of the samples, in order; none is there twice."""
    if len(dataset) < launch.count():
        raise ValueError(f"{launch.count()} processes cannot share {len(dataset)} samples to evaluate on")
    return Loader(
        dataset,
        collate,
        batch_size=settings.evaluation_batch_size,
        sampler=range(launch.rank(), len(dataset), launch.count()),
        **_loading(settings.workers),
    )


def _loading(workers: int) -> dict[str, Any]:
    # A generator of its own: making an iterator must not draw from the global one.
    return {
        "num_workers": workers,
        "worker_init_fn": _leave_interrupts_to_parent,
        # As before Python 3.14, whose forkserver keeps the workers of a killed process for ever.
        "multiprocessing_context": "fork" if workers and sys.platform == "linux" else None,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator().manual_seed(0),
    }


def _leave_interrupts_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _devices(settings: FitSettings) -> dict[str, Any]:
    """The options that the trainers of `fit` and `evaluate` share."""
    strategy: Any = "auto"
    devices: int | list[int]
    accelerator, devices = settings.accelerator, launch.count_here()
    if settings.device is not None:
        accelerator = "gpu" if settings.device.type == "cuda" else settings.device.type
        if settings.device.index is not None:
            if launch.count() > 1:
                raise ValueError(f"several processes cannot share {settings.device}; leave out its number")
            devices = [settings.device.index]
    if launch.count() > 1:
        gpu = accelerator != "cpu" and torch.cuda.is_available()
        launch.part_at_exit()
        # Metrics are gathered on the CPU.
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        strategy = DDPStrategy(process_group_backend=backend, timeout=timedelta(minutes=30))
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": launch.count() // launch.count_here(),
        "strategy": strategy,
        "precision": settings.precision,
        "use_distributed_sampler": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        # The anchors that torchvision keeps between steps may not be inference tensors.
        "inference_mode": False,
    }


def _synchronise_norms(module: TrainingModule, trainer: lightning.Trainer) -> None:
    """Synchronise the batch norms that are trained over all processes."""
    # Frozen norms have another class.
    trained = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())
    if launch.count() == 1 or not trained:
        return
    if trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "batch norms that are trained are synchronised over processes, which torch does on GPUs alone; "
            "freeze them or train in one process"
        )
    module.model = convert_sync_batchnorm(module.model)


@contextlib.contextmanager
def _ending_plainly() -> Iterator[None]:
    """Exit with the usual code after SIGTERM, and name the exit of another process, which gloo's errors do not."""
    try:
        yield
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if launch.count() > 1 and lost:
            raise ConnectionError(f"process {launch.rank()} lost the connection: another process has exited") from error
        raise


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
    """Suppress the hints of Lightning that do not apply here."""
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
