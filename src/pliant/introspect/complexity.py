"""The cost of a network: parameters, multiply-adds, time and memory, plain and deformable (Dai et al., table 4)."""

from __future__ import annotations

import copy
import math
import timeit
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

import torch
import torchvision  # noqa: F401  (registers its operators)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from pliant import ops  # noqa: F401  (registers the operators)
from pliant.introspect.recording import evaluation
from pliant.surgery import undeform

_READS = 4  # multiply-adds of a bilinear sample
_LEAST_ROUNDS = 5


class Complexity(NamedTuple):
    """The cost of one forward pass.

    Attributes:
        parameters: number of parameters of the model. Fixed batch norms have none.
        multiply_adds: multiply-adds of convolutions, matrix products and bilinear samples, by torch's counter, which
            does not count poolings.
        seconds: median time of repeated passes without gradients.
        peak_bytes: peak memory of the pass beyond the model and its inputs, in bytes. On a GPU this is all that torch
            had allocated; on the CPU it is tensors only, without the scratch memory of operators.
    """

    parameters: int
    multiply_adds: int
    seconds: float
    peak_bytes: int


class Comparison(NamedTuple):
    """A plain and a deformable network on the same inputs.

    Attributes:
        plain, deformable: the cost of each.
        time_ratio: time of the deformable network over time of the plain one, the median over passes that alternate.
    """

    plain: Complexity
    deformable: Complexity
    time_ratio: float


def complexity(model: nn.Module, *inputs: Any, min_seconds: float = 1.0) -> Complexity:
    """Count and measure a forward pass in evaluation mode.

    Args:
        model: any model, which is left as it was. Its convolutions may be deformable, of Pliant or torchvision.
        inputs: the arguments of the model.
        min_seconds: how long to repeat passes for the time, in seconds. They use as many threads as torch currently
            does.

    Returns:
        A `Complexity`.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=1))
        >>> cost = pliant.introspect.complexity(model, torch.rand(1, 3, 16, 16), min_seconds=0)
        >>> cost.parameters  # 3 * 8 * 9 + 8 of the layer, 3 * 18 * 9 + 18 of its offset branch
        728
    """
    (seconds,) = _seconds([model], inputs, min_seconds)
    return _complexity(model, inputs, median(seconds))


def compare_with_plain(
    model: nn.Module, *inputs: Any, plain: nn.Module | None = None, min_seconds: float = 2.0
) -> Comparison:
    """Count and measure a deformable network and the plain network with the same weights.

    Args:
        model, inputs, min_seconds: see `complexity`.
        plain: network to compare with. By default it is a copy of the model after `pliant.undeform`, which leaves RoI
            poolings deformable.

    Returns:
        A `Comparison`.

    Examples:
        >>> model = torch.nn.Sequential(pliant.nn.DeformConv2d(3, 8, 3, padding=1))
        >>> found = pliant.introspect.compare_with_plain(model, torch.rand(1, 3, 16, 16), min_seconds=0)
        >>> found.deformable.parameters - found.plain.parameters
        504
    """
    if plain is None:
        plain = undeform(copy.deepcopy(model))
    first, second = _seconds([plain, model], inputs, min_seconds)
    ratio = median(ours / theirs for theirs, ours in zip(first, second, strict=True))
    return Comparison(
        _complexity(plain, inputs, median(first)), _complexity(model, inputs, median(second)), time_ratio=ratio
    )


def _complexity(model: nn.Module, inputs: Any, seconds: float) -> Complexity:
    with evaluation(model), torch.no_grad():
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _torchvision})
        with counter:
            model(*inputs)
        peak = _peak_bytes(model, inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(parameters, counter.get_total_flops() // 2, seconds, peak)


@torch.no_grad()
def _seconds(models: Sequence[nn.Module], inputs: Any, min_seconds: float) -> list[list[float]]:
    """Times of single passes by model. The models alternate, so that other load on the machine slows all of them."""
    # Importing torch's Timer looks for a CUDA compiler, and warns if there is one without a GPU.
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    timers = [
        timeit.Timer("model(*inputs); wait()", globals={"model": model, "inputs": inputs, "wait": wait})
        for model in models
    ]
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluation(model))
            model(*inputs)
        while len(times[0]) < _LEAST_ROUNDS or sum(map(sum, times)) < min_seconds:
            for timer, found in zip(timers, times, strict=True):
                found.append(timer.timeit(1))
    return times


@register_flop_formula(torch.ops.pliant.deform_conv2d)
def _forward(input: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(input, weight, out_shape)


@register_flop_formula(torch.ops.pliant.deform_conv2d_backward)
def _backward(grad: Any, input: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products as large as the forward's. Samples are read again, scattered, and differentiated on two axes."""
    products, samples = _products_and_samples(input, weight, grad)
    return 2 * (2 * products + 4 * _READS * samples)


def _torchvision(input: Any, weight: Any, offset: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(input, weight, out_shape)


def _flops(input: Any, weight: Any, output: Any) -> int:
    products, samples = _products_and_samples(input, weight, output)
    return 2 * (products + _READS * samples)


def _products_and_samples(input: Any, weight: Any, output: Any) -> tuple[int, int]:
    """The multiply-adds of a convolution of these shapes, and the number of values that it samples."""
    places = output[0] * output[2] * output[3]
    return places * math.prod(weight), places * input[1] * weight[2] * weight[3]


def _peak_bytes(model: nn.Module, inputs: Any) -> int:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(*inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        model(*inputs)
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operators allocate, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # allocated before
            if isinstance(tensor, Tensor):
                self._watch(tensor, 0)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _watch(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += size
        weakref.finalize(storage, self._free, storage._cdata, size)

    def _free(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size
