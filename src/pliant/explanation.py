"""Which kernel runs for a tensor, and why a faster one does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pliant.ops import _gpu, _native

_OF_MAPS = ("deform_conv2d", "roi_pool", "deform_roi_pool", "ps_roi_pool", "deform_ps_roi_pool")  # [B, C, H, W]
OPERATORS = (*_OF_MAPS, "ms_deform_attn", "deform_aggregate")
_COMPILED = "the compiled CPU kernels"
_TRITON = "the Triton kernels"
_REFERENCE = "the reference, in plain PyTorch"


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`, which prints as text.

    Attributes:
        operator: name of the operator.
        kernel: the kernel that runs.
        notes: sentences about why a faster kernel does not run and how this one computes.
    """

    operator: str
    kernel: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"pliant.ops.{self.operator} runs on {self.kernel}", *(f"  {note}" for note in self.notes)))


def explain(input: Tensor, operator: str = "deform_conv2d") -> Explanation:
    """Explain which kernel runs for a tensor, and why a faster one does not.

    Args:
        input: the operator's input. Its device and dtype decide.
        operator: name of a function of `pliant.ops`.

    Returns:
        An `Explanation`, which prints as text.

    Raises:
        TypeError: if the input is not a tensor.
        ValueError: if the operator is unknown.

    Examples:
        >>> print(pliant.explain(torch.rand(1, 8, 16, 16)))
        pliant.ops.deform_conv2d runs on ...
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(map(repr, OPERATORS))}, got {operator!r}")
    if _gpu.serves(input):
        return Explanation(operator, _TRITON, _triton_notes(input, operator))
    if input.device.type != "cpu":
        return Explanation(operator, _REFERENCE, (f"not on {_TRITON}: {_gpu.why_not(input)}",))
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
    return f"{name}: computed in float32, because products of {name} are slower on this processor, or it has none"


def _triton_notes(input: Tensor, operator: str) -> tuple[str, ...]:
    if input.device.type == "cpu":
        notes = ["in Triton's interpreter, on the CPU: to test, not to work with"]
    else:
        notes = [f"compiled at the first call for {torch.cuda.get_device_name(input.device)}"]
    if input.dtype != torch.float32:
        notes.append("sums in float32")
    elif operator == "deform_conv2d":
        how = "tf32, as torch's convolutions may" if _gpu.precision(input.dtype) == "tf32" else "float32, without tf32"
        notes.append(f"products in {how} (torch.backends.cudnn)")
    if not _gpu.adds_in_any_order():
        notes.append(
            "backward on the reference: the kernels' adds with atomics, and torch.use_deterministic_algorithms is on"
        )
    if operator in _OF_MAPS and not input.is_contiguous(memory_format=torch.channels_last):
        notes.append(
            "the input is copied channels last; with memory_format=torch.channels_last it is read where it lies"
        )
    return tuple(notes)
