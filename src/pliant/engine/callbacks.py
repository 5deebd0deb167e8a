"""Callbacks of a training: log, progress, interruption, checkpoints."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pliant import distributed, launch
from pliant.console import Console, Progress, Task
from pliant.runs import checkpoints
from pliant.runs.files import write_torch
from pliant.runs.folder import RunFolder


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are whole at any moment; a killed process leaves nothing outside the run's folder.

    Lightning itself writes to the system's folder for temporary files first, where a killed process leaves them.

    Args:
        full: Whether a checkpoint contains the weights, which are in a file of their own otherwise.
    """

    def __init__(self, *, full: bool) -> None:
        super().__init__()
        self.full = full

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if self.full:
            write_torch(Path(path), checkpoint)
        else:
            checkpoints.write_without_weights(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        return checkpoints.complete(Path(path), super().load_checkpoint(path, *arguments, **options))


class StepLog(Callback):
    """Gives losses, learning rate and mean offset of every step to the loggers. Put it before `Checkpoints`."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        schedule = module.schedule
        values = {"lr": schedule.lr * schedule.factor(step - 1)}
        values |= {name: float(loss) for name, loss in module.losses.items()}
        offset = module.mean_offset()
        if offset is not None:
            values["mean_offset"] = offset
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


class ShowProgress(Callback):
    """Shows the steps of a training with their loss, the validations in it with their score, or an evaluation.

    Args:
        progress: The bars, which the caller enters and leaves.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._training: Task | None = None
        self._evaluation: Task | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._training = self.progress.task("training", module.schedule.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._training is not None:
            self._training.update(trainer.global_step, losses_text(module.losses))

    def on_validation_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._begin("validating", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self._advance()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._end()
        score = module.results[module.monitor]
        self.progress.console.print(f"step {trainer.global_step}  validation {module.monitor} {score:.4f}")

    def on_test_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._begin("evaluating", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._end()

    def _begin(self, doing: str, batches: Sequence[int | float]) -> None:
        self._evaluation = self.progress.task(doing, int(sum(batches)))

    def _advance(self) -> None:
        if self._evaluation is not None:
            self._evaluation.advance()

    def _end(self) -> None:
        if self._evaluation is not None:
            self._evaluation.end()


def losses_text(losses: Mapping[str, Any]) -> str:
    """The loss, and after it its parts if there are several."""
    parts = {name: value for name, value in losses.items() if name != "loss"}
    shown = [f"{name.removeprefix('loss_')} {float(value):.3f}" for name, value in parts.items()]
    return f"loss {float(losses['loss']):.4f}" + (f" ({', '.join(shown)})" if len(shown) > 1 else "")


class Watch(Callback):
    """Calls a function with the number of finished steps after each step.

    Args:
        tell: The function.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tell(trainer.global_step)


class Interruption(Callback):
    """Lets Ctrl-C wait for the end of the step, where the run can be saved. The second one stops at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._console = Console(stderr=True)

    def asked(self) -> bool:
        """Whether any process was asked to stop."""
        return bool(distributed.mean(torch.tensor(float(self._asked))) > 0)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _ask(self, *_: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if launch.is_first():
            self._console.print("Stopping after this step; once more stops at once.")


class Checkpoints(Callback):
    """Writes ``last`` every so many steps, after each validation, at the end and on a stop, and ``best`` on progress.

    Each file is complete at any moment. Where a validation is due, the checkpoint follows it, so resuming never
    leaves a validation out. The last step is always validated. The first of several processes writes.

    Args:
        run: Folder to write to.
        every: Number of steps between checkpoints.
        validate_every: Number of steps between validations; None if there are none.
        description: Header of the weights.
        interruption: Says when to stop.
        full: Whether a checkpoint contains the weights, and ``best`` is a checkpoint as well.
    """

    def __init__(
        self,
        run: RunFolder,
        every: int,
        validate_every: int | None,
        description: Mapping[str, Any],
        interruption: Interruption,
        *,
        full: bool = False,
    ) -> None:
        if every < 1 or (validate_every is not None and validate_every < 1):
            raise ValueError(
                f"the steps between checkpoints and validations must be at least 1, got {every} and {validate_every}"
            )
        self.run = run
        self.every = every
        self.validate_every = validate_every
        self.description = dict(description)
        self.interruption = interruption
        self.full = full
        self.best_score = -math.inf
        self.saved_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        finished = step >= module.schedule.max_steps
        if self.validate_every is not None and (finished or step % self.validate_every == 0):
            # Lightning validates at once when it is asked to stop, whatever the interval.
            trainer.should_stop = trainer.should_stop or finished
            return
        asked = self.interruption.asked()
        if finished or asked or trainer.received_sigterm or step % self.every == 0:
            self._save(trainer, module)
        if asked:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        score = module.results[module.monitor]
        best = score > self.best_score
        if best:
            self.best_score = score
        self._save(trainer, module, best=best)
        if self.interruption.asked():
            raise KeyboardInterrupt

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if trainer.is_global_zero and self.run.started:
            what = "Interrupted" if isinstance(exception, KeyboardInterrupt | SystemExit) else "Stopped by an error"
            saved = f"the checkpoint of step {self.saved_step}" if self.saved_step else "the start"
            Console(stderr=True).print(f"{what}. Continue from {saved} with: pliant train --resume {self.run.path}")

    def _save(self, trainer: lightning.Trainer, module: Any, *, best: bool = False) -> None:
        """Write ``last`` in the order of `pliant.runs.checkpoints`, and ``best`` before it.

        All processes take part, the first one writes. A process that is killed before ``last`` is written repeats the
        validation, and has the same ``best``.
        """
        step = trainer.global_step
        if trainer.is_global_zero:
            staged = checkpoints.stage(self.run.last, module.model, {**self.description, "step": step})
            if best:
                checkpoints.share(staged, self.run.best.with_suffix(".safetensors"))
        if best and self.full:
            trainer.save_checkpoint(self.run.best)
        trainer.save_checkpoint(self.run.last)
        if trainer.is_global_zero:
            checkpoints.accept(self.run.last, staged)
            if best and not self.full:
                self.run.best.unlink(missing_ok=True)  # of an earlier version, and of weights that are not the best now
            self.saved_step = step
