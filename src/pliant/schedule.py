"""The learning-rate schedule of the paper's training: constant, with steps down and an optional warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from pliant import ranges


@dataclass(frozen=True)
class Schedule:
    """Stochastic gradient descent with momentum, and when its learning rate changes.

    The learning rate is multiplied by `decay` after each fraction of `max_steps` in `decay_at`. The first
    `warmup_steps` steps use ``lr * warmup_factor``, a constant and not a ramp, as the authors' code does.

    Attributes:
        max_steps: Number of optimizer steps.
        lr: Learning rate.
        momentum: Momentum of the gradient.
        weight_decay: L2 penalty of all parameters but biases.
        decay_at: Fractions of `max_steps`, rising, after which the learning rate falls.
        decay: Factor by which the learning rate falls.
        warmup_steps: Number of steps at the warm-up's learning rate.
        warmup_factor: The warm-up's learning rate, as a share of `lr`.

    Raises:
        ValueError: If a value is out of its range.
    """

    max_steps: ranges.Steps
    lr: ranges.Rate
    momentum: ranges.Momentum = 0.9
    weight_decay: ranges.Fraction = 5e-4
    decay_at: ranges.Fractions = (2 / 3,)
    decay: ranges.Factor = 0.1
    warmup_steps: ranges.WarmupSteps = 0
    warmup_factor: ranges.Factor = 0.1

    def __post_init__(self) -> None:
        ranges.check_fields(self)

    def factor(self, step: int) -> float:
        """The learning rate of a step (the first is 0), as a share of `lr`."""
        if step < self.warmup_steps:
            return self.warmup_factor
        passed = sum(step >= round(at * self.max_steps) for at in self.decay_at)
        return float(self.decay**passed)
