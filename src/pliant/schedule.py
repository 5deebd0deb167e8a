"""The learning-rate schedule of the paper's training: constant, with steps down and an optional warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pliant import ranges


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

    max_steps: Annotated[int, ranges.STEPS]
    lr: Annotated[float, ranges.RATE]
    momentum: Annotated[float, ranges.MOMENTUM] = 0.9
    weight_decay: Annotated[float, ranges.FRACTION] = 5e-4
    decay_at: Annotated[tuple[float, ...], ranges.Items(rising=True), ranges.BETWEEN] = (2 / 3,)
    decay: Annotated[float, ranges.FACTOR] = 0.1
    warmup_steps: Annotated[int, ranges.WARMUP_STEPS] = 0
    warmup_factor: Annotated[float, ranges.FACTOR] = 0.1

    def __post_init__(self) -> None:
        ranges.check_fields(self)

    def factor(self, step: int) -> float:
        """The learning rate of a step (the first is 0), over `lr`."""
        if step < self.warmup_steps:
            return self.warmup_factor
        passed = sum(step >= round(at * self.max_steps) for at in self.decay_at)
        return float(self.decay**passed)
