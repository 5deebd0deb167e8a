"""Which kernel runs, and why not a faster one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pliant.ops import _native

OPERATORS = ("deform_conv2d", "roi_pool", "deform_roi_pool", "ps_roi_pool", "deform_ps_roi_pool")
_COMPILED = "the compiled CPU kernels"
_REFERENCE = "the reference, in plain PyTorch"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; its text is for people.

    Attributes:
        operator: the operator's name.
        kernel: the kernel that runs.
        notes: one sentence each: why a faster kernel does not run, how this one computes.
    """

    operator: str
    kernel: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"pliant.ops.{self.operator} runs on {self.kernel}", *(f"  {note}" for note in self.notes)))


def explain(input: Tensor, operator: str = "deform_conv2d") -> Explanation:
    """Say which kernel would run for a tensor, and why not a faster one.

    Args:
        input: the operator's input; its device and dtype decide.
        operator: one of the functions of `pliant.ops`.

    Raises:
        TypeError, ValueError: if the input is no tensor, or the operator is unknown.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(map(repr, OPERATORS))}, got {operator!r}")
    device = input.device.type
    if device != "cpu":
        return Explanation(
            operator, _REFERENCE, (f"there are no {device} kernels yet: the compiled ones are the CPU's",)
        )
    if reason := _native.why_not():
        return Explanation(operator, _REFERENCE, (f"not on {_COMPILED}: {reason}",))
    chosen = _native.current()
    notes = [f"instruction set {chosen}, up to {torch.get_num_threads()} threads (torch.set_num_threads)"]
    if input.dtype.itemsize == 2:
        notes.append(_half_note(input.dtype, operator, chosen))
    return Explanation(operator, _COMPILED, tuple(notes))


def _half_note(dtype: torch.dtype, operator: str, chosen: str) -> str:
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.bfloat16 and operator == "deform_conv2d" and chosen.endswith("bf16"):
        return f"{name}: products of pairs, summed in float32; the weight's gradient in float32"
    return f"{name}: computed in float32, because this processor or kernel has no products of {name}"
