"""MXNet 1.9.1, where the operators were first released, run by another Python: see mxnet_process.py."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from pliant.bench.implementation import Implementation, Missing
from pliant.bench.rows import GAMMA, STRIDE, ConvRow, PoolRow, Tensors

VARIABLE = "PLIANT_MXNET_PYTHON"
_PROCESS = Path(__file__).with_name("mxnet_process.py")


class MXNet(Implementation):
    """The authors' operators, which know the authors' border and sampling alone."""

    trains = True
    border = "authors"

    def __init__(self, row: ConvRow | PoolRow, tensors: Tensors, threads: int) -> None:
        if not os.environ.get(VARIABLE):
            raise Missing(f"{VARIABLE} names no Python that has MXNet 1.9.1")
        if isinstance(row, PoolRow) and row.sampling != "authors":
            raise Missing("MXNet has the authors' sampling alone")
        if "mask" in tensors:
            raise Missing("MXNet's DeformableConvolution has no mask")
        operator, options = _pooling(row) if isinstance(row, PoolRow) else _convolution(row)
        self.names = ("input", "rois", "offset") if isinstance(row, PoolRow) else ("input", "offset", "weight")
        self.grad = tensors["grad"]
        arrays: dict[str, Any] = {f"input{i}": tensors[name].numpy() for i, name in enumerate(self.names)}
        arrays |= {"operator": operator, "options": json.dumps(options), "grad": self.grad.numpy()}
        self.process: subprocess.Popen[str] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="pliant-bench-")
        try:
            case = Path(self.folder.name) / "case.npz"
            numpy.savez(case, **arrays)
            self.process = _start(case, threads)
            self.version = self._answer()["ready"]
        except BaseException:
            self.close()
            raise

    def forward(self) -> Tensor:
        return self._results(self.grad)["output"]

    def gradients(self, grad: Tensor) -> dict[str, Tensor]:
        results = self._results(grad)
        return {name: results[f"grad{i}"] for i, name in enumerate(self.names) if name != "rois"}

    def turn(self, training: bool, calls: int) -> float:
        return float(self._ask({"training": training, "calls": calls})["seconds"])

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.folder.cleanup()

    def _results(self, grad: Tensor) -> dict[str, Tensor]:
        target, source = (Path(self.folder.name) / name for name in ("results.npz", "grad.npy"))
        numpy.save(source, grad.numpy())
        self._ask({"results": str(target), "grad": str(source)})
        return {name: torch.from_numpy(value) for name, value in numpy.load(target).items()}

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, said = self.process.communicate()
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise Missing(f"the process of {os.environ[VARIABLE]} ended: {last}")
        return json.loads(line)


def _start(case: Path, threads: int) -> subprocess.Popen[str]:
    python = os.environ[VARIABLE]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            [python, str(_PROCESS), str(case)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
        )
    except OSError as error:
        raise Missing(f"{VARIABLE} names {python}, which does not start: {error.strerror}") from error


def _convolution(row: ConvRow) -> tuple[str, dict[str, Any]]:
    return "DeformableConvolution", {
        "kernel": [row.kernel] * 2,
        "stride": [1, 1],
        "dilate": [row.dilation] * 2,
        "pad": [row.padding] * 2,
        "num_filter": row.out_channels,
        "num_group": row.groups,
        "num_deformable_group": row.offset_groups,
        "no_bias": True,
    }


def _pooling(row: PoolRow) -> tuple[str, dict[str, Any]]:
    return "DeformablePSROIPooling", {
        "spatial_scale": 1 / STRIDE,
        "output_dim": row.channels,
        "group_size": row.group_size,
        "pooled_size": row.bins,
        "part_size": row.bins,
        "sample_per_part": 4,
        "trans_std": GAMMA,
        "no_trans": False,
    }
