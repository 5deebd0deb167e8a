"""Time deformable convolution on a GPU, beside cuDNN's plain convolution (the limit) and torchvision's operator.

    python bench/gpu.py > gpu.md                    # every row, batch 1, 8 and 32, float16, bfloat16 and float32
    python bench/gpu.py --device cpu --rows 1 ...   # that the script runs, where there is no GPU

As in `pliant bench`, an implementation is timed once its output and gradients agree with the float64 reference, and
all take turns, round after round. conv2d, Pliant and deformops (`pip install deformops`, Python 3.12 or 3.13) run
channels last, as networks on GPUs do; torchvision's operator knows contiguous maps alone. deformops is called by its
stand-in for torchvision's, which turns offsets and output over. Memory is what a forward with its backward needs at its
peak, beyond what was there.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
import triton
from torch import Tensor

import pliant
from pliant.bench.implementation import InTorch, Missing
from pliant.bench.measure import RowResult, measure
from pliant.bench.peers import Column
from pliant.bench.report import Table, row_tables
from pliant.bench.rows import CONVOLUTION_HEAD, CONVOLUTIONS, ConvRow, Tensors

PYRAMID = (ConvRow(1, 256, 256, 50, 84), ConvRow(1, 512, 512, 25, 42))  # with 128 channels at 100 x 168: c3 to c5
ROWS = (*CONVOLUTIONS[:5], *PYRAMID)
BATCHES = (1, 8, 32)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5}


class OnDevice(InTorch):
    """A function of torch tensors on a device and in a dtype; offsets stay float32 where the function allows it."""

    def __init__(
        self, function: Callable[..., Tensor], tensors: Tensors, names: tuple[str, ...], device: str,
        dtype: torch.dtype, layout: torch.memory_format, wide_offset: bool,
    ) -> None:  # fmt: skip
        kept = {"offset": torch.float32} if wide_offset else {}
        moved = {name: value.to(device, kept.get(name, dtype), memory_format=layout) for name, value in tensors.items()}
        super().__init__(function, moved, names, dtype=dtype)
        self.device = torch.device(device)
        self.tolerance = TOLERANCE[dtype]

    def forward(self) -> Tensor:
        return super().forward().cpu()

    def gradients(self, grad: Tensor) -> dict[str, Tensor]:
        found = super().gradients(grad.to(self.device))
        return {name: value.cpu() for name, value in found.items()}

    def turn(self, training: bool, calls: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            if training:
                InTorch.gradients(self, self.grad)
            else:
                InTorch.forward(self)
        self._wait()
        return time.perf_counter() - start

    def peak(self) -> float:
        """MiB of a forward with its backward."""
        if self.device.type != "cuda":
            return float("nan")
        self._wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        InTorch.gradients(self, self.grad)
        self._wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def columns(device: str, dtype: torch.dtype, made: dict[str, OnDevice]) -> dict[str, Column]:
    """Who takes part; what was made last of each is left in `made`."""
    last, contiguous = torch.channels_last, torch.contiguous_format

    def plain(row: ConvRow, tensors: Tensors, threads: int) -> OnDevice:
        def call(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(input, weight, None, 1, row.padding, row.dilation)

        found = OnDevice(call, tensors, ("input", "weight"), device, dtype, last, False)
        found.moved = False
        return found

    def deformable(operator: Callable[..., Tensor], row: ConvRow, layout: torch.memory_format, wide: bool) -> Callable:
        def call(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
            return operator(input, offset, weight, padding=row.padding, dilation=row.dilation)

        return partial(OnDevice, call, names=("input", "offset", "weight"), device=device, dtype=dtype, layout=layout,
                       wide_offset=wide)  # fmt: skip

    def ours(row: ConvRow, tensors: Tensors, threads: int) -> OnDevice:
        return deformable(pliant.ops.deform_conv2d, row, last, True)(tensors)

    def torchvisions(row: ConvRow, tensors: Tensors, threads: int) -> OnDevice:
        if device == "cpu" and dtype != torch.float32:
            raise Missing("torchvision has no half precision on the CPU")
        return deformable(torchvision.ops.deform_conv2d, row, contiguous, False)(tensors)

    def deformops(row: ConvRow, tensors: Tensors, threads: int) -> OnDevice:
        try:
            operator = importlib.import_module("deformops.integrations.torchvision").deform_conv2d
        except ImportError as error:
            raise Missing(f"deformops is not installed ({error})") from error
        return deformable(operator, row, last, False)(tensors)

    def noted(name: str, column: Column) -> Column:
        def make(row: ConvRow, tensors: Tensors, threads: int) -> OnDevice:
            made[name] = column(row, tensors, threads)  # type: ignore[assignment]
            return made[name]

        return make

    every: dict[str, Column] = {"conv2d": plain, "Pliant": ours, "torchvision": torchvisions, "deformops": deformops}
    return {name: noted(name, column) for name, column in every.items()}


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description="Time deformable convolution on a GPU.")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--rows", type=int, default=len(ROWS), help="the first so many")
    arguments.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    arguments.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16", "float32"])
    arguments.add_argument("--seconds", type=float, default=1.0, help="for a row")
    given = arguments.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everyone
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, triton {triton.__version__}"
    print(f"{name}; pliant {pliant.__version__}, {versions}\n")
    for dtype in (getattr(torch, each) for each in given.dtypes):
        results: list[RowResult] = []
        memory: list[list[str]] = []
        for row in ROWS[: given.rows]:
            for batch in given.batches:
                made: dict[str, OnDevice] = {}
                sized = replace(row, batch=batch)
                results.append(measure(sized, columns(given.device, dtype, made), 1, given.seconds))
                memory.append([sized.name, *(f"{each.peak():.0f}" for each in made.values())])
                print(sized.name, dtype, {n: o.error for n, o in results[-1].outcomes.items()}, file=sys.stderr)
        for table in row_tables(f"Deformable convolution, {dtype}", CONVOLUTION_HEAD, results, {}):
            print(table.markdown())
        print(Table(f"Peak memory, {dtype}, MiB", [CONVOLUTION_HEAD, *made], memory).markdown())


if __name__ == "__main__":
    main()
