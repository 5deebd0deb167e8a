"""Compile the GPU kernels ahead of time, without a GPU, and print what ptxas says of each.

    python bench/gpu_kernels.py            # all kernels, dtypes and targets, as a table in Markdown

The launchers run on tensors of the meta device. Their launches are caught, and compiled as Triton would on the first
call: the same types, constants and hints. One line is one kernel in one dtype for one target.
"""

from __future__ import annotations

import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pliant.ops import _gpu
from pliant.ops.deform_conv2d import gpu as convolution
from pliant.ops.deform_conv2d.reference import Geometry
from pliant.ops.roi_pool import gpu as pooling
from pliant.ops.roi_pool.reference import Pooling

TARGETS = (80, 90)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Launch(NamedTuple):
    """What a launcher asked Triton to run."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


class Figures(NamedTuple):
    """Of one compiled kernel: a thread's registers and bytes spilled, a block's bytes of shared memory and threads."""

    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    threads: int


def launches(call: Callable[[], object]) -> list[Launch]:
    """The launches of a call, which are not run."""
    caught: list[Launch] = []

    def catch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: Any) -> None:
        caught.append(Launch(kernel, arguments, options))

    # Tensors of the meta device have no values to check.
    with mock.patch.object(_gpu, "launch", catch), mock.patch.object(pooling, "check_rois"):
        call()
    return caught


def compiled(launch: Launch, capability: int) -> Figures:
    """Compile for a target and ask ptxas."""
    target = GPUTarget("cuda", capability, 32)
    kernel = triton.compile(_source(launch), target=target, options=launch.options)
    return _figures(kernel.asm["ptx"], capability, kernel.metadata.shared, 32 * kernel.metadata.num_warps)


def _source(launch: Launch) -> ASTSource:
    signature, constants, aligned = {}, {}, []
    for at, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        specialised = isinstance(value, Tensor) or not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        if specialised and (isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)):
            aligned.append(at)
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3):
        return ASTSource(launch.kernel, signature, constants, {(at,): [["tt.divisibility", 16]] for at in aligned})
    from triton.backends.compiler import AttrsDescriptor

    hints = AttrsDescriptor.from_dict({"arg_properties": {"tt.divisibility": aligned}, "cls": "AttrsDescriptor"})
    return ASTSource(launch.kernel, {k: v for k, v in signature.items() if v != "constexpr"}, constants, hints)


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32"}
        return "*" + names[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _figures(ptx: str, capability: int, shared: int, threads: int) -> Figures:
    """Assemble with the ptxas of the Triton wheel, which tells registers and spills only when asked to be verbose."""
    name = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    said = ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        for ptxas in sorted(folder.glob("ptxas*")):  # some wheels bring a second one, for newer targets
            command = [str(ptxas), "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stderr
            if not done.returncode:
                break
        else:
            raise RuntimeError(f"no ptxas in {folder} assembles {name}: {said or 'there is none'}")
    found = [
        re.search(pattern, said)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    ]
    registers, stores, loads = (int(match[1]) if match else 0 for match in found)
    return Figures(registers, stores, loads, shared, threads)


def convolutions(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Forward and backward of the last but one row of `pliant bench`, with a mask and offsets in float32."""
    input = torch.empty(1, 512, 64, 128, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    offset = torch.empty(1, 18, 64, 128, device="meta")
    mask = torch.empty(1, 9, 64, 128, device="meta")
    weight = torch.empty(512, 512, 3, 3, dtype=dtype, device="meta")
    geometry = Geometry((1, 1), (2, 2), (2, 2))
    yield lambda: convolution.deform_conv2d(input, offset, weight, weight[:, 0, 0, 0], mask, geometry)
    yield lambda: convolution.deform_conv2d_backward(input, input, offset, weight, mask, geometry)


def poolings(dtype: torch.dtype, rule: str) -> Iterator[Callable[[], object]]:
    """Forward and backward of deformable pooling: 300 RoIs, 256 channels, 7x7 bins."""
    input = torch.empty(1, 256, 38, 63, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    rois, offset = torch.empty(300, 5, device="meta"), torch.empty(300, 2, 7, 7, device="meta")
    grad = torch.empty(300, 256, 7, 7, dtype=dtype, device="meta")
    options = Pooling((7, 7), (1, 1), 1 / 16, 0.1, rule, 4)
    yield lambda: pooling.roi_pool(input, rois, offset, options)
    yield lambda: pooling.roi_pool_backward(grad, input, rois, offset, options)


def rows() -> Iterator[tuple[str, Launch]]:
    """Everything that the table lists: a name, and a launch."""
    for dtype in DTYPES:
        for call in convolutions(dtype):
            for launch in launches(call):
                yield f"deform_conv2d {launch.kernel.__name__} | {name_of(dtype)}", launch
    with mock.patch.object(_gpu, "precision", return_value="ieee"):
        for call in convolutions(torch.float32):
            for launch in launches(call):
                yield f"deform_conv2d {launch.kernel.__name__} | float32, no tf32", launch
    with mock.patch.object(_gpu, "_INT32_ELEMENTS", 0):
        for call in convolutions(torch.float16):
            for launch in launches(call):
                yield f"deform_conv2d {launch.kernel.__name__} | float16, 64-bit indices", launch
    for dtype in DTYPES:
        for rule in ("whole_cells", "authors_samples"):
            for call in poolings(dtype, rule):
                for launch in launches(call):
                    yield f"roi_pool {launch.kernel.__name__}, {rule} | {name_of(dtype)}", launch


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name without its module."""
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Print the table."""
    print(f"{platform.machine()}, triton {triton.__version__}, torch {torch.__version__}\n")
    print("| kernel | dtype | target | threads | registers | spilled, bytes | shared, KiB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name, launch in rows():
        for capability in TARGETS:
            found = compiled(launch, capability)
            spilled = found.spill_stores + found.spill_loads
            figures = f"{found.threads} | {found.registers} | {spilled} | {found.shared / 1024:.0f}"
            print(f"| {name} | sm_{capability} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
