"""How the compiled kernels live in a process: threads, forks, the interpreter's lock, large indices."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ConvCase
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pliant.ops import _native, deform_conv2d, deform_ps_roi_pool

pytestmark = pytest.mark.skipif(_native.kernels is None, reason="the compiled kernels are not installed")
LARGE = ConvCase(batch=2, channels=48, out_channels=32, size=(40, 37), kernel=(3, 3), padding=(1, 1))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def convolution(case: ConvCase = LARGE) -> list[Tensor]:
    tensors = case.tensors(torch.float32)
    out = deform_conv2d(**tensors, **case.geometry)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(tensors.values()))]


def convolution_without_autograd() -> list[Tensor]:
    """The same for a child process: after a fork, torch refuses autograd if it had started threads before."""
    tensors = {name: value.detach() for name, value in LARGE.tensors(torch.float32).items()}
    out = deform_conv2d(**tensors, **LARGE.geometry)
    del tensors["bias"]
    grads = torch.ops.pliant.deform_conv2d_backward(2 * out, *tensors.values(), *LARGE.geometry.values(), "paper")
    return [out, *grads[:3], 2 * out.sum((0, 2, 3)), grads[3]]


def pooling() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 40 * 9, 30, 31, generator=generator, requires_grad=True)
    corner = 200 * torch.rand(64, 4, generator=generator)
    rois = torch.cat([torch.arange(64).remainder(2).view(-1, 1), corner[:, :2], corner[:, :2] + corner[:, 2:]], dim=1)
    offset = torch.randn(64, 2, 3, 3, generator=generator, requires_grad=True)
    out = deform_ps_roi_pool(maps, rois, offset, 3, 1 / 8, sampling="authors")
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [maps, offset])]


@pytest.mark.parametrize("operator", [convolution, pooling])
def test_the_same_numbers_for_every_number_of_threads(operator) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    alone = operator()
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for got, want in zip(operator(), alone, strict=True):
            assert torch.equal(got, want)


def test_threads_follow_torch_and_small_problems_take_one() -> None:
    torch.set_num_threads(3)
    assert _native.threads(1 << 30) == 3
    assert _native.threads(1000) == 1


OPENMP = """
import re, torch, pliant
from pathlib import Path
torch.set_num_threads(2)
def loaded():
    maps = Path("/proc/self/maps").read_text()
    return set(re.findall(r"\\S*/lib(?:gomp|omp|iomp5)\\S*", maps))
torch.ones(1 << 20).sum()
tasks = lambda: len(list(Path("/proc/self/task").iterdir()))
before, torch_alone = tasks(), loaded()
x, weight = torch.randn(1, 64, 40, 40), torch.randn(64, 64, 3, 3)
pliant.ops.deform_conv2d(x, torch.zeros(1, 18, 40, 40), weight, padding=1)
print(tasks() - before, len(torch_alone), *sorted(loaded() - torch_alone))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_kernels_run_on_torchs_threads() -> None:
    done = subprocess.run([sys.executable, "-c", OPENMP], capture_output=True, text=True, check=True)
    new_threads, *_ = done.stdout.split()
    assert new_threads == "0", f"threads of its own beside torch's: {done.stdout}"


def ticks_during_a_call() -> int:
    """How often this thread has its turn while another one is in a kernel."""
    case = ConvCase(batch=1, channels=256, out_channels=256, size=(60, 60), groups=1, offset_groups=1)
    tensors = {name: value.detach() for name, value in case.tensors(torch.float32).items()}
    done, ticks = threading.Event(), 0

    def call() -> None:
        deform_conv2d(**tensors, **case.geometry)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0.0005)
    thread.join()
    return ticks


def test_the_interpreter_is_free_during_a_call() -> None:
    torch.set_num_threads(1)
    # Held, it would be free once before and once after; other programs may take the turns of one call.
    assert any(ticks_during_a_call() > 3 for _ in range(50))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_forked_child_computes() -> None:
    torch.set_num_threads(2)
    expected = [float(value.double().sum()) for value in convolution()]
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_in_child_without_torchs_threads, args=(theirs,))
    child.start()
    theirs.close()
    try:
        assert ours.poll(600)
        assert ours.recv() == pytest.approx(expected, rel=1e-9)  # EOFError: the child ended without a result
    finally:
        child.kill()
        child.join()


def _in_child_without_torchs_threads(result: Connection) -> None:
    """torch's own operators hang on two threads after a fork; ours, on as many as it asks for, may not."""
    torch.set_num_threads(1)
    results = convolution_without_autograd()
    threads, _native.threads = _native.threads, lambda work: 2  # type: ignore[assignment]
    again = convolution_without_autograd()
    _native.threads = threads
    assert all(torch.equal(one, other) for one, other in zip(results, again, strict=True))
    result.send([float(value.double().sum()) for value in results])


class _Computing(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return convolution_without_autograd()[0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_of_a_data_loader_compute() -> None:
    torch.set_num_threads(2)
    expected = convolution()[0]
    for item in DataLoader(_Computing(), batch_size=None, num_workers=2, timeout=600):
        torch.testing.assert_close(item, expected)


def test_indices_beyond_two_to_the_31() -> None:
    """A map of 2^32 elements in the memory of one row: all rows are the same."""
    width = 1 << 16
    row = torch.randn(1, 1, 1, width)
    tall = row.expand(1, 1, 1 << 16, width)
    offset = torch.zeros(1, 2, 2, 2)
    offset[0, 0, 1] = 30000.5  # the lower row of samples reads at 62767.5
    weight = torch.ones(1, 1, 1, 1)
    out = deform_conv2d(tall, offset, weight, stride=(1 << 15, 1 << 15))
    expected = row[0, 0, 0, [0, 1 << 15]].expand(2, 2)
    torch.testing.assert_close(out[0, 0], expected)
    beyond = torch.zeros(1, 2, 2, 2)
    beyond[0, 1] = float(width)  # to the right of the map
    assert deform_conv2d(tall, beyond, weight, stride=(1 << 15, 1 << 15)).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_map_of_16_bit_numbers_has_a_largest_size(dtype: torch.dtype) -> None:
    """It is always copied: one row more than 2^26 cells, all rows in the memory of one."""
    tall = torch.zeros(1, 1, 1, 1 << 13, dtype=dtype).expand(1, 1, (1 << 13) + 1, 1 << 13)
    offset, weight = torch.zeros(1, 2, 2, 1, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
    with pytest.raises(ValueError, match=r"at most 2\^26 cells"):
        deform_conv2d(tall, offset, weight, stride=(1 << 13, 1 << 13))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("far", [2**30, 2**31 - 1])
def test_taps_that_lie_far_outside_read_nothing(far: int, groups: int) -> None:
    x, offset = torch.rand(1, 4, 3, 5), torch.rand(1, 18, 3, 5)
    weight = torch.rand(4, 4 // groups, 3, 3)
    out = deform_conv2d(x, offset, weight, padding=far, dilation=far)
    assert torch.equal(out, deform_conv2d(x, offset[:, 8:10], weight[:, :, 1:2, 1:2]))


def test_the_compiled_module_refuses_what_does_not_fit() -> None:
    tensors = [torch.ones(1, 2, 5, 5), torch.zeros(1, 18, 5, 5), torch.ones(2, 2, 3, 3), None, None]
    out = torch.empty(1, 2, 5, 5)

    def call(*changed: Tensor | None, out: Tensor = out) -> None:
        described = [_native.described(tensor) for tensor in changed]
        _native.kernels.deform_conv2d(*described, (1, 1), (1, 1), (1, 1), False, _native.described(out), 1)

    call(*tensors)
    for position, wrong in ((1, torch.zeros(1, 18, 4, 5)), (2, torch.ones(2, 3, 3, 3)), (4, torch.ones(1, 8, 5, 5))):
        with pytest.raises(ValueError, match=r"\w"):
            call(*tensors[:position], wrong, *tensors[position + 1 :])
    with pytest.raises(ValueError, match="out"):
        call(*tensors, out=torch.empty(1, 2, 5, 4))
    with pytest.raises(ValueError, match="offset"):
        call(tensors[0], torch.zeros(1, 18, 5, 10)[..., ::2], *tensors[2:])


POOLED = [torch.ones(1, 4, 5, 5), torch.tensor([[0.0, 0, 0, 4, 4]]), torch.zeros(1, 2, 2, 2)]
POOLING = (2, 2), (1, 1), 1.0, 0.1, 0, 4


def pool(input: Any = None, rois: Any = None, offset: Any = None, options: Any = POOLING, threads: int = 1) -> None:
    given = zip((input, rois, offset), POOLED, strict=True)
    tensors = [_native.described(right) if value is None else value for value, right in given]
    out = torch.empty(1, 4, 2, 2)  # a name of its own, or it would be gone before the call
    _native.kernels.roi_pool(*tensors, *options, _native.described(out), threads)


def test_the_compiled_module_refuses_what_would_reach_beside_memory() -> None:
    pool()
    address, dtype, shape, strides = _native.described(POOLED[0])  # type: ignore[misc]
    for wrong in (
        (address + 1, dtype, shape, strides),
        (address, 4, shape, strides),
        (0, dtype, shape, strides),
        (address, dtype, shape, (-100, 25, 5, 1)),
        (address, dtype, shape, (1 << 62, 25, 5, 1)),
        (address, dtype, shape, strides[:3]),
        (address, dtype, (1, 4, 1 << 25, 5), (0, 0, 0, 0)),
        (address, dtype, (1 << 30, 1 << 30, 5, 5), (0, 0, 0, 0)),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            pool(input=wrong)
    with pytest.raises(ValueError, match="offset"):
        pool(offset=_native.described(torch.tensor(0.5)))  # one number, where each bin has two
    for threads in (0, -1, 1 << 20):
        with pytest.raises(ValueError, match="threads"):
            pool(threads=threads)
    with pytest.raises(ValueError, match="spatial_scale"):
        pool(options=((2, 2), (1, 1), float("inf"), 0.1, 0, 4))
    grad, grad_input = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 5, 5)
    described = [_native.described(tensor) for tensor in (grad, *POOLED)]
    with pytest.raises(ValueError, match="grad_offset"):
        _native.kernels.roi_pool_backward(*described, *POOLING, _native.described(grad_input), None, 1)
    assert grad_input.count_nonzero() == 0


@settings(max_examples=200)
@given(wrong=st.recursive(st.none() | st.integers() | st.text() | st.floats() | st.binary(), st.lists, max_leaves=8))
def test_the_compiled_module_refuses_what_describes_no_tensor(wrong: Any) -> None:
    for value in (wrong, tuple(wrong) if isinstance(wrong, list) else wrong, (0, wrong, wrong, wrong)):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            pool(rois=() if value is None else value)
