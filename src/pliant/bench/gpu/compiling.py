"""The GPU's kernels compiled where there is no GPU: what a call launches, and what the compiler makes of it.

The operators run on tensors without values (torch's fake tensors). Their launches are caught, and compiled by Triton's
own warm-up with a driver that knows a target and nothing else: the same types, constants and hints as at the first
call on such a GPU, and so the same entry of Triton's cache.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver as active_driver
from triton.runtime.jit import MockTensor

from pliant.bench.gpu import machine_code
from pliant.bench.gpu.estimate import Figures
from pliant.ops import _gpu, _native
from pliant.ops.deform_aggregate import op as aggregation
from pliant.ops.deform_conv2d import op as convolution
from pliant.ops.deform_conv2d import shipped
from pliant.ops.deform_conv2d.tiles import Problem
from pliant.ops.ms_deform_attn import op as attention
from pliant.ops.roi_pool import gpu as pooling
from pliant.ops.roi_pool import op as roi_pool

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_FLAGS = ("BACKWARD", "FILL", "EARLY")  # of kernels that do more than one thing
_OPS = torch.ops.pliant
_WRITTEN = {
    _OPS.deform_aggregate.default: aggregation.forward,
    _OPS.deform_aggregate_backward.default: aggregation.backward,
    _OPS.deform_conv2d.default: convolution.forward,
    _OPS.deform_conv2d_backward.default: convolution.backward,
    _OPS.ms_deform_attn.default: attention.forward,
    _OPS.ms_deform_attn_backward.default: attention.backward,
    _OPS.roi_pool.default: roi_pool.forward,
    _OPS.roi_pool_backward.default: roi_pool.backward,
}


class Launch(NamedTuple):
    """What a launcher asked Triton to run; tensors are replaced by their types."""

    module: str
    name: str
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def kernel(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def described(self) -> str:
        """The operator and kernel, the type of the first tensor, and the tile."""
        operator = self.module.split(".")[-2]
        dtype = next(value.dtype for value in self.arguments.values() if isinstance(value, MockTensor))
        blocks = [str(value) for name, value in self.arguments.items() if name.startswith("BLOCK_")]
        name = ", ".join([self.name, *(flag.lower() for flag in _FLAGS if self.arguments.get(flag))])
        return f"{operator} {name} | {str(dtype).removeprefix('torch.')} | {' × '.join(blocks)}"

    @property
    def key(self) -> str:
        """Alike for launches that run the same machine code."""
        return repr((self.module, self.name, sorted(self.options.items()), *map(self._kind, self.kernel.params)))

    def _kind(self, parameter: Any) -> object:
        value = self.arguments[parameter.name]
        if isinstance(value, MockTensor):
            return value.dtype
        if parameter.is_constexpr or value is None or not isinstance(value, int):
            return value if parameter.is_constexpr or value is None else type(value)
        wide = not -(1 << 31) <= value < 1 << 31
        if parameter.do_not_specialize:
            return wide
        return value == 1, value % 16 == 0, wide


class _Target(DriverBase):
    """Triton's driver of a GPU that is not there. The number of the device is its compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


class _Launchers(TorchDispatchMode):
    """Pliant's operators run as they are written, where fake tensors would be given results alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written = _WRITTEN.get(func, func)
        return written(*args, **(kwargs or {}))


@contextmanager
def traced(capability: int = 90) -> Iterator[list[Launch]]:
    """What Pliant's operators, called inside, would launch on a GPU; nothing runs, and no tensor has values.

    Tensors are on the CPU, where autograd needs no GPU, and take the ways of a GPU's of this compute capability.
    """
    caught: list[Launch] = []

    def catch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: Any) -> None:
        replaced = {
            name: MockTensor(value.dtype, list(value.shape)) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        caught.append(Launch(kernel.fn.__module__, kernel.__name__, replaced, options))

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        _Launchers(),
        mock.patch.object(_gpu, "launch", catch),
        mock.patch.object(_gpu, "serves", lambda tensor: tensor.dtype != torch.float64),
        mock.patch.object(_gpu, "layout", _layout),
        mock.patch.object(_native, "serves", return_value=False),
        mock.patch.object(shipped, "find", partial(_shipped, capability)),
        mock.patch.object(pooling, "check_rois"),  # of values
    ):
        yield caught


def _shipped(capability: int, kernel: str, problem: Problem) -> dict[str, Any] | None:
    """The entry of the shipped table, as on a GPU."""
    return shipped.find_for(divmod(capability, 10), kernel, problem)


def _layout(input: Tensor) -> torch.memory_format:
    """As `_gpu.layout` has it on a GPU."""
    return torch.contiguous_format if input.is_contiguous() else torch._prims_common.suggest_memory_format(input)


def compiled(launch: Launch, capability: int) -> Any:
    """Triton's compiled kernel for a compute capability such as 90; it is left in Triton's cache."""
    with mock.patch.object(active_driver, "_active", _Target(capability)):
        return launch.kernel.warmup(grid=(1,), **launch.arguments, **launch.options)


def figures(kernel: Any) -> Figures:
    """What a compiled kernel needs."""
    said = _asked(kernel, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump tells no registers: {said.strip()[-300:]}")
    threads = 32 * kernel.metadata.num_warps
    return Figures(int(found[1]), int(found[2]), kernel.metadata.shared, threads, machine_code.turn(code(kernel)))


def code(kernel: Any) -> list[machine_code.Instruction]:
    """A compiled kernel's machine code."""
    return machine_code.read(_asked(kernel, "-sass"))


def why_not() -> str | None:
    """Why nothing can be compiled with this Triton; None where it can."""
    missing = [name for name in ("ptxas", "cuobjdump") if not (_TOOLS / name).exists()]
    return f"triton {triton.__version__} has no {' and no '.join(missing)} in {_TOOLS}" if missing else None


def _asked(kernel: Any, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([_TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
