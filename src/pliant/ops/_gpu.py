"""Which tensors the Triton kernels take, and how they are launched. Triton is imported with the first of them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from pliant.ops import _native

_CAPABILITY = (8, 0)  # of the first processors with tensor cores for every dtype here
_INT32_ELEMENTS = 1 << 31
_ELSEWHERE_SMS = 132  # where no device tells: compiled ahead, or interpreted


def why_not(tensor: Tensor) -> str | None:
    """Why the Triton kernels do not run on this tensor's device and dtype; None where they do."""
    device = tensor.device
    if device.type != "cuda" and not _interpreted(tensor):
        return f"there are no {device.type} kernels: the GPU's are written in Triton, for CUDA"
    if _native.reference_asked():
        return 'the reference was asked for, by use("reference")'
    if device.type == "cuda" and (reason := _device_declines(device)):
        return reason
    if tensor.dtype == torch.float64:
        return "the Triton kernels compute in float32: float64 is the reference's"
    return None


def serves(tensor: Tensor) -> bool:
    """Whether the Triton kernels take this tensor's call."""
    return (tensor.device.type == "cuda" or _interpreted(tensor)) and why_not(tensor) is None


def adds_in_any_order() -> bool:
    """Whether a backward may add with atomics, in an order that differs from call to call."""
    return not torch.are_deterministic_algorithms_enabled()


def layout(input: Tensor) -> torch.memory_format:
    """The memory format of a map that goes with `input`: on a GPU its own, elsewhere contiguous."""
    if input.device.type != "cuda" or input.is_contiguous():
        return torch.contiguous_format
    if type(input) is Tensor and input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last  # as below, in a tenth of the time
    return torch._prims_common.suggest_memory_format(input)


def index_type(*tensors: Tensor | None) -> Any:
    """The integer that reaches every element of all tensors: 32 bits where they do."""
    return index_of(far_apart(*tensors))


def index_of(far: bool) -> Any:
    """The integer for indices."""
    language = importlib.import_module("triton.language")
    return language.int64 if far else language.int32


def far_apart(*tensors: Tensor | None) -> bool:
    """Whether 32 bits do not reach every element of all tensors."""
    return any(tensor is not None and _reach(tensor) >= _INT32_ELEMENTS for tensor in tensors)


def _reach(tensor: Tensor) -> int:
    """The place of the last element, counted from the first."""
    if tensor.is_contiguous():
        return tensor.numel()
    return sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def product_type(dtype: torch.dtype) -> Any:
    """What matrix products multiply. Triton's interpreter would take the bits of bfloat16 for integers."""
    language = importlib.import_module("triton.language")
    if dtype == torch.bfloat16 and _native.interpreting():
        return language.float32
    return getattr(language, str(dtype).removeprefix("torch."))


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: tf32 where torch allows its own convolutions to."""
    return "tf32" if dtype != torch.float32 or _convolutions_may_use_tf32() else "ieee"


def matrix_precision() -> str:
    """How torch's own matrix products multiply float32 on a GPU."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(torch.backends.cudnn, "conv"):  # torch before 2.9
        return "tf32" if matmul.allow_tf32 else "ieee"
    return next((each.fp32_precision for each in (matmul, torch.backends) if each.fp32_precision != "none"), "ieee")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once, about."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 1 if _native.interpreting() else _ELSEWHERE_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: Any) -> Any:
    """Run a kernel on the device of its arguments.

    Args:
        kernel: a function of `triton.jit`.
        grid: how many programs there are, on up to three axes.
        arguments: all that the kernel takes, by name.
        options: how it is compiled.

    Returns:
        What runs it again with other tensors of the same kind; None where nothing does.
    """
    if _native.interpreting():
        kernel[grid](**arguments, **options)
        return None
    values = [arguments[name] for name in kernel.arg_names]
    tensor = next(value for value in values if isinstance(value, Tensor))
    with torch.cuda.device_of(tensor):
        variant = (kernel, tensor.device, *options.items(), *map(_specialisation, kernel.params, values))
        compiled = _compiled.get(variant)
        if compiled is not None:
            again = compiled[(*grid, 1, 1)[:3]]
            again(*values)
            return again
        made = kernel[grid](**arguments, **options)
    if made is None or not _relaunches():
        return None
    _compiled[variant] = made
    return made[(*grid, 1, 1)[:3]]


# What `kernel[grid](...)` finds anew at every launch, in the time that a small problem takes.
_compiled: dict[Any, Any] = {}


class Prepared:
    """A launch all of whose arguments are known but the tensors. To run it again takes a small part of its time.

    Args:
        kernel: a function of `triton.jit`.
        grid: how many programs there are.
        arguments: what the kernel takes and is no tensor, by name; it may hold more.
        options: how the kernel is compiled.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        self.kernel, self.grid, self.options = kernel, grid, options
        self._arguments = {name: arguments[name] for name in kernel.arg_names if name in arguments}
        self._values = [self._arguments.get(name) for name in kernel.arg_names]
        self._tensors = [(at, name) for at, name in enumerate(kernel.arg_names) if name not in arguments]
        self._again: dict[Any, Any] = {}

    def run(self, tensors: dict[str, Tensor | None]) -> None:
        """Launch with these tensors, which are all that the kernel takes."""
        if not self._again:
            self._first(tensors)
            return
        values = self._values.copy()
        for at, name in self._tensors:
            values[at] = tensors[name]
        again = self._again.get(self._variant(tensors))
        if again is None:
            self._first(tensors)
            return
        device = next(tensor for tensor in tensors.values() if tensor is not None).get_device()
        if device == torch.cuda.current_device():
            again(*values)
        else:
            with torch.cuda.device(device):
                again(*values)

    def _first(self, tensors: dict[str, Tensor | None]) -> None:
        arguments = self._arguments | {name: tensors[name] for _, name in self._tensors}
        again = launch(self.kernel, self.grid, arguments, **self.options)
        if again is not None:
            self._again[self._variant(tensors)] = again

    def _variant(self, tensors: dict[str, Tensor | None]) -> tuple[object, ...]:
        """What of the tensors makes another variant of a kernel."""
        found: list[object] = []
        for _, name in self._tensors:
            tensor = tensors[name]
            found += (None,) if tensor is None else (tensor.dtype, tensor.data_ptr() % 16 == 0)
        return tuple(found)


def _specialisation(parameter: Any, value: Any) -> Any:
    """What of an argument makes another variant of a kernel, as Triton's own keys have it."""
    if parameter.is_constexpr or value is None:
        return value
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return value >> 31 if parameter.do_not_specialize else (value == 1, value % 16 == 0, value >> 31)
    return type(value)


@functools.cache
def _relaunches() -> bool:
    """Whether a compiled kernel of this Triton is launched with all arguments of its function, constants included."""
    version = importlib.import_module("triton").__version__
    return tuple(map(int, version.split(".")[:2])) >= (3, 3)


def _interpreted(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and _native.current() == _native.TRITON


def _convolutions_may_use_tf32() -> bool:
    backends = torch.backends
    if not hasattr(backends.cudnn, "conv"):  # torch before 2.9
        return bool(backends.cudnn.allow_tf32)
    for setting in (backends.cudnn.conv, backends.cudnn, backends):
        if setting.fp32_precision != "none":
            return bool(setting.fp32_precision == "tf32")
    return False


@functools.cache
def _device_declines(device: torch.device) -> str | None:
    if torch.version.hip:
        return "there are no ROCm kernels: the GPU's are written in Triton, and were compiled for CUDA alone"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; torch's builds for CUDA on Linux bring it"
    found = torch.cuda.get_device_capability(device)
    if found < _CAPABILITY:
        needed = ".".join(map(str, _CAPABILITY))
        return f"the Triton kernels need compute capability {needed}, and this GPU has {found[0]}.{found[1]}"
    return None
