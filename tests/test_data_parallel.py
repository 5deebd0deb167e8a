"""Deformable networks under DistributedDataParallel, with parameters that a step leaves unused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROCESS = Path(__file__).with_name("data_parallel_process.py")
GPUS = torch.cuda.device_count()
needs_two_gpus = pytest.mark.skipif(GPUS < 2, reason=f"NCCL connects two GPUs, and this machine has {GPUS}")


def gradients(folder: Path, backend: str, processes: int) -> dict[str, torch.Tensor | None]:
    out, meeting = folder / f"{processes}.pt", folder / f"meeting{processes}"
    started = [
        subprocess.Popen(
            [sys.executable, str(PROCESS), str(rank), str(processes), backend, str(meeting), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
            process.wait()
    found: dict[str, torch.Tensor | None] = torch.load(out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["gloo", pytest.param("nccl", marks=needs_two_gpus)])
def test_two_processes_have_the_gradients_of_one(backend: str, tmp_path: Path) -> None:
    """With NCCL the batch norm is synchronised, so that it sees the whole batch, as in one process."""
    one, two = (gradients(tmp_path, backend, processes) for processes in (1, 2))
    assert one.keys() == two.keys()
    assert ("norm.weight" in one) == (backend == "nccl")
    for name, want in one.items():
        got = two[name]
        if want is None:  # the head that was not asked
            assert name.startswith("heads.0.")
            assert got is None or not got.any()
            continue
        assert got is not None, name
        assert want.any(), name
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
