"""What happens around training steps: rows in the log, and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from pliant.engine.runs import RunFolder, replacing, write_weights


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
        module.log("loss", values["loss"], prog_bar=True, logger=False, batch_size=1)


class StepLines(Callback):
    """Prints a line now and then, where there is no terminal for a progress bar.

    Args:
        every: The number of steps between two lines.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._console = Console(stderr=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, last = trainer.global_step, module.schedule.max_steps
        if trainer.is_global_zero and (step % self.every == 0 or step in (1, last)):
            self._console.print(f"step {step}/{last}  loss {float(module.losses['loss']):.4f}")

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            score = module.results[module.monitor]
            self._console.print(f"step {trainer.global_step}  validation {module.monitor} {score:.4f}")


class Watch(Callback):
    """Tells a function the number of steps done, after each.

    Args:
        tell: The function.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tell(trainer.global_step)


class Checkpoints(Callback):
    """Writes ``last`` every so many steps, after each validation and at the end, and ``best`` on progress.

    Each file is whole at any moment. Where a validation is due, the checkpoint follows it, so resuming never
    leaves a validation out. The last step is always validated. The first of several processes writes.

    Args:
        run: Where.
        every: The number of steps between two checkpoints.
        validate_every: The number of steps between two validations; None if there are none.
        description: For the header of the weights.
    """

    def __init__(self, run: RunFolder, every: int, validate_every: int | None, description: Mapping[str, Any]) -> None:
        if every < 1 or (validate_every is not None and validate_every < 1):
            raise ValueError(
                f"the steps between checkpoints and validations must be at least 1, got {every} and {validate_every}"
            )
        self.run = run
        self.every = every
        self.validate_every = validate_every
        self.description = dict(description)
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
        elif finished or step % self.every == 0:
            self._save(trainer, module, self.run.last)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        score = module.results[module.monitor]
        if score > self.best_score:
            self.best_score = score
            self._save(trainer, module, self.run.best)
        self._save(trainer, module, self.run.last)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt):
            saved = f"the checkpoint of step {self.saved_step}" if self.saved_step else "the start"
            Console(stderr=True, soft_wrap=True).print(
                f"Interrupted. Continue from {saved} with: pliant train --resume {self.run.path}"
            )

    def _save(self, trainer: lightning.Trainer, module: Any, path: Path) -> None:
        self.saved_step = trainer.global_step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # takes part, and writes nothing
            return
        with replacing(path) as temporary:
            trainer.save_checkpoint(temporary)
        description = {**self.description, "step": trainer.global_step}
        write_weights(path.with_suffix(".safetensors"), module.model, description)
