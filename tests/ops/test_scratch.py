"""What RoI pooling needs beyond its tensors, by the system's count, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pliant.bench import memory
from pliant.ops import _native

MIB = 2**20

# The tensors are there before the call, but for its results, which are counted with what they need.
NEEDS = """
import torch
from pliant.bench import memory
from pliant.ops.roi_pool import cpu
from pliant.ops.roi_pool.reference import Pooling

def needs(call):
    memory._RESET.write_text("5")
    before = memory._peak()
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    print(threads, memory._peak() - before - sum(result.nbytes for result in results))

def pool(channels, size, bins, group, classes, dtype=torch.float32, layout=torch.contiguous_format):
    input = torch.randn(1, channels * group * group, *size).to(dtype).contiguous(memory_format=layout)
    edge = torch.tensor([[0, 0, 0, size[1] * 8, size[0] * 8], [0, 50, 60, size[1] * 16, size[0] * 16]]).float()
    rois = edge.repeat(8, 1)
    offset = torch.randn(16, 2 * classes, bins, bins).to(dtype)
    pooling = Pooling((bins, bins), (group, group), 1 / 16, 0.1, rule, 4)
    needs(lambda: cpu.roi_pool(input, rois, offset, pooling))
    grad = torch.randn(16, channels, bins, bins).to(dtype)
    needs(lambda: cpu.roi_pool_backward(grad, input, rois, offset, pooling))

for threads in (2, 8):
    torch.set_num_threads(threads)
    for rule in ("whole_cells", "authors_samples"):
        pool(64, (8, 8), 2, 1, 1)  # starts the threads
        pool(512, (30, 40), 40, 1, 1)  # many bins
        pool(32, (300, 400), 7, 1, 2)  # a large map
        pool(8, (60, 90), 7, 7, 8)  # planes
        pool(8, (60, 90), 7, 7, 1, torch.float32, torch.channels_last)
"""


@pytest.mark.skipif(bool(memory.why_not()), reason=f"memory cannot be measured here: {memory.why_not()}")
def test_a_call_needs_32_mib_on_two_threads_and_2_mib_more_for_each_other(kernels: str) -> None:
    if kernels != _native.available()[0] or kernels == _native.REFERENCE:
        pytest.skip("scratch is the same on all instruction sets")
    environment = os.environ | memory._ALLOCATOR
    done = subprocess.run([sys.executable, "-c", NEEDS], capture_output=True, text=True, check=True, env=environment)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    two, eight = ([needed for threads, needed in lines if threads == some] for some in (2, 8))
    assert len(two) == len(eight) == 20
    assert max(two) <= 32 * MIB
    assert all(more <= needed + 6 * 2 * MIB for needed, more in zip(two, eight, strict=True)), lines
