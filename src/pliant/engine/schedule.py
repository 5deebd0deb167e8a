"""The learning-rate schedule of the paper's training: constant, with steps down and an optional warm-up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Stochastic gradient descent with momentum, and when its learning rate changes.

    The learning rate is `lr`, times `decay` after each fraction of `max_steps` in `decay_at`. The first
    `warmup_steps` steps use ``lr * warmup_factor``, a constant and not a ramp, as the authors' code does.

    Attributes:
        max_steps: The number of optimizer steps.
        lr: The learning rate.
        momentum: Of the gradient.
        weight_decay: Not applied to biases.
        decay_at: Fractions of `max_steps`, rising, each in 0..1 without the ends.
        decay: The factor at each of them.
        warmup_steps: The number of steps at the warm-up's rate.
        warmup_factor: The warm-up's rate over `lr`.

    Raises:
        ValueError: If a value is out of its range.
    """

    max_steps: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (2 / 3,)
    decay: float = 0.1
    warmup_steps: int = 0
    warmup_factor: float = 0.1

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if list(self.decay_at) != sorted(self.decay_at) or not all(0 < at < 1 for at in self.decay_at):
            raise ValueError(f"decay_at must be rising fractions between 0 and 1, got {self.decay_at}")
        if not (self.decay > 0 and self.warmup_factor > 0):
            raise ValueError(f"decay and warmup_factor must be positive, got {self.decay} and {self.warmup_factor}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")

    def factor(self, step: int) -> float:
        """The learning rate of a step (the first is 0), over `lr`."""
        if step < self.warmup_steps:
            return self.warmup_factor
        passed = sum(step >= round(at * self.max_steps) for at in self.decay_at)
        return float(self.decay**passed)
