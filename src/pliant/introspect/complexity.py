"""What a network costs: parameters, multiply-adds, time and memory, plain against deformable (table 4)."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any, NamedTuple

import torch
import torchvision  # noqa: F401  (registers its operators)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from pliant import ops  # noqa: F401  (registers the operators)
from pliant.introspect.recording import evaluation
from pliant.surgery import undeform

_READS = 4  # multiply-adds of a bilinear sample


class Complexity(NamedTuple):
    """What one forward pass costs.

    Attributes:
        parameters: how many numbers the model learns; fixed batch norms hold none.
        multiply_adds: of convolutions, matrix products and bilinear samples, by torch's counter. Like torch's own,
            poolings are left out.
        seconds: the median of repeated passes, without gradients.
        peak_bytes: the most that the pass held at once beyond the model and its inputs. On a GPU, all that torch had
            allocated; on the CPU, tensors, without what an operator needs while it runs.
    """

    parameters: int
    multiply_adds: int
    seconds: float
    peak_bytes: int


class Comparison(NamedTuple):
    """A plain and a deformable network on the same inputs."""

    plain: Complexity
    deformable: Complexity

    @property
    def time_ratio(self) -> float:
        """How many times as long the deformable network takes."""
        return self.deformable.seconds / self.plain.seconds


def complexity(model: nn.Module, *inputs: Any, min_seconds: float = 1.0) -> Complexity:
    """Count and measure a forward pass, in evaluation mode; the model is left as it was.

    Args:
        model: any. Its convolutions may be deformable, of `pliant` or torchvision.
        inputs: what it is called with.
        min_seconds: how long passes are repeated for the time, with as many threads as torch now uses.
    """
    with evaluation(model), torch.no_grad():
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _torchvision})
        with counter:
            model(*inputs)
        timer = Timer("model(*inputs)", globals={"model": model, "inputs": inputs}, num_threads=torch.get_num_threads())
        seconds = timer.blocked_autorange(min_run_time=min_seconds).median
        peak = _peak_bytes(model, inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Complexity(parameters, counter.get_total_flops() // 2, seconds, peak)


def compare_with_plain(
    model: nn.Module, *inputs: Any, plain: nn.Module | None = None, min_seconds: float = 1.0
) -> Comparison:
    """Count and measure a deformable network and the plain one of the same weights.

    Args:
        model, inputs, min_seconds: see `complexity`.
        plain: what to compare with; by default a copy of the model after `pliant.undeform`, which leaves RoI
            poolings deformable.
    """
    if plain is None:
        plain = undeform(copy.deepcopy(model))
    first = complexity(plain, *inputs, min_seconds=min_seconds)
    return Comparison(first, complexity(model, *inputs, min_seconds=min_seconds))


@register_flop_formula(torch.ops.pliant.deform_conv2d)
def _forward(input: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(input, weight, out_shape)


@register_flop_formula(torch.ops.pliant.deform_conv2d_backward)
def _backward(grad: Any, input: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products as large as the forward's; samples are read again, scattered, and differentiated on two axes."""
    products, samples = _products_and_samples(input, weight, grad)
    return 2 * (2 * products + 4 * _READS * samples)


def _torchvision(input: Any, weight: Any, offset: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _flops(input, weight, out_shape)


def _flops(input: Any, weight: Any, output: Any) -> int:
    products, samples = _products_and_samples(input, weight, output)
    return 2 * (products + _READS * samples)


def _products_and_samples(input: Any, weight: Any, output: Any) -> tuple[int, int]:
    """Multiply-adds of a convolution of these shapes, and how many values it takes from the map."""
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
    """Counts the bytes of tensors that operators make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # what was there before
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
