"""Record what a model reads of its image, operator by operator, while it runs once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torchvision  # noqa: F401  (registers its operators)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pliant import ops  # noqa: F401  (registers the operators)
from pliant.introspect.positionwise import keeps_places

Pair = tuple[float, float]
Size = tuple[int, int]


class Window(NamedTuple):
    """The positions that an operator reads: at output p, tap k reads `p * stride - padding + k * dilation + offset`."""

    kernel: Size
    stride: Pair
    padding: Pair
    dilation: Pair
    offset: Tensor | None = None  # [G, K, 2, Ho, Wo], (y, x) in cells of the input


@dataclass(frozen=True, eq=False)
class Step:
    """An operator on the main branch. `below` links it to the operators that feed it.

    Attributes:
        name: name of the module in which the operator ran.
        window: the positions that it reads; None for the image and for an operator that cannot be followed.
        size: height and width of its output.
        below: the operator that it reads from.
        deformable, layers: number of deformable operators and of operators with a kernel, from here down to the image.
        framing: whether it only places or scales the image for the network.
        lost: name of the operator if it cannot be followed.
    """

    name: str
    window: Window | None
    size: Size
    below: Step | None = None
    deformable: int = 0
    layers: int = 0
    framing: bool = False
    lost: str = ""

    def chain(self) -> Iterator[Step]:
        """This step and those below, down to the image or to an operator that cannot be followed."""
        step: Step | None = self
        while step is not None:
            yield step
            step = step.below


class Pooled(NamedTuple):
    """A deformable RoI pooling as it ran, with the arguments of `torch.ops.pliant.roi_pool`."""

    name: str
    step: Step | None  # the map that is pooled
    size: Size
    rois: Tensor  # [R, 5]
    offset: Tensor  # [R, 2 * T, Qh, Qw]
    pooling: tuple[Any, ...]


class Recording(NamedTuple):
    """The deformable convolutions and RoI poolings of a run, in order of execution."""

    image: Size
    layers: list[Step]
    pools: list[Pooled]


@torch.no_grad()
def record(model: nn.Module, image: Tensor, call: Callable[[], Any] | None = None) -> Recording:
    """Run a model once on an image in evaluation mode and record what it reads. The model is left as it was.

    Args:
        model: any model.
        image: `[C, H, W]` as the model takes it, without a batch axis.
        call: function to run instead of the model on a batch of the image.

    Raises:
        ValueError: if the image has another shape.
    """
    if image.dim() != 3:
        raise ValueError(f"image must have shape [C, H, W], got {list(image.shape)}")
    batch = image.unsqueeze(0).clone()  # models may modify it in place
    with evaluation(model), _names(model) as name:
        mode = _Recorder(name)
        mode.steps[batch] = Step("image", None, (image.shape[1], image.shape[2]))
        with mode:
            model(batch) if call is None else call()
    seen = Counter[str]()
    layers = []
    for step in mode.deformable:
        seen[step.name] += 1
        again = f" ({seen[step.name]})" if seen[step.name] > 1 else ""
        layers.append(replace(step, name=f"{step.name}{again}"))
    return Recording((image.shape[1], image.shape[2]), layers, mode.pools)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the modes of its modules afterwards."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


@contextmanager
def _names(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the name of the innermost running module."""
    running = [type(model).__name__]
    names = {module: name or running[0] for name, module in model.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        running.append(names[module])

    def leave(*_: Any) -> None:
        running.pop()

    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield lambda: running[-1]


class _Call(NamedTuple):
    """An operator as it was called, and the index of the output of interest."""

    func: Any
    args: Sequence[Any]
    kwargs: Any
    which: int


class _Recorder(TorchDispatchMode):
    """Follows tensors that originate from the image through every operator below autograd."""

    def __init__(self, name: Callable[[], str]) -> None:
        super().__init__()
        self.name = name
        self.steps = WeakTensorKeyDictionary()
        self.copied: dict[int, tuple[Tensor, Step]] = {}  # by storage: images copied into a batch
        self.deformable: list[Step] = []
        self.pools: list[Pooled] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is torch.ops.pliant.roi_pool and args[2] is not None:
            size = (args[0].shape[2], args[0].shape[3])
            self.pools.append(Pooled(self.name(), self._of(args[0]), size, args[1], args[2], tuple(args[3:])))
        if packet is torch.ops.aten.copy_:
            self._copy(args[0], args[1])
            return out
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = [step for step in map(self._of, inputs) if step is not None]
        if before:
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            for which, tensor in enumerate(tensors):
                self.steps[tensor] = self._step(_Call(func, args, kwargs, which), before, tensor)
        if packet in _DEFORMABLE and args[0] in self.steps:
            self.deformable.append(self.steps[out])
        return out

    def _of(self, tensor: Tensor) -> Step | None:
        copied = self.copied.get(tensor.untyped_storage()._cdata)
        return copied[1] if copied else self.steps.get(tensor)

    def _step(self, call: _Call, before: list[Step], out: Tensor) -> Step:
        packet, args = call.func.overloadpacket, call.args
        main = _main(before, product=packet in _PRODUCTS)
        reads = _READERS.get(packet)
        if reads is not None:
            read = self._of(args[0])  # the input, not the offsets
            if read is not None and args[0].dim() >= 3 and tuple(args[0].shape[-2:]) == read.size:
                window = reads(args, out)
                if window is not None:
                    return _above(read, self.name(), window, (out.shape[-2], out.shape[-1]), packet in _FRAMING)
        elif _in_place(call.func, main.size, out) or self._tried(call, main):
            return main
        size = (out.shape[2], out.shape[3]) if out.dim() == 4 else (1, 1)
        return replace(main, name=self.name(), window=None, size=size, below=None, lost=str(call.func))

    def _tried(self, call: _Call, main: Step) -> bool:
        """Whether an operator without the pointwise tag keeps the positions of the map of the main branch."""
        maps = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        map = next((each for each in maps if self._of(each) is main), None)
        return map is not None and keeps_places(call.func, call.args, call.kwargs, map, main.size, call.which)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        """Record the row and column at which an image is copied into a larger one."""
        step = self._of(source)
        if step is None or source.dim() < 3 or target.stride(-1) != 1:
            return
        plane, row = target.stride(-3), target.stride(-2)
        place = target.storage_offset() % plane
        window = Window((1, 1), (1, 1), (int(place // row), int(place % row)), (1, 1))
        placed = _above(step, self.name(), window, (int(plane // row), int(row)), framing=True)
        self.copied[target.untyped_storage()._cdata] = target, placed


def _above(below: Step, name: str, window: Window, size: Size, framing: bool = False) -> Step:
    return Step(
        name,
        window,
        size,
        below,
        deformable=below.deformable + (window.offset is not None),
        layers=below.layers + (window.kernel != (1, 1)),
        framing=framing,
    )


def _main(before: list[Step], product: bool) -> Step:
    """The map on the main branch, of those that meet in an operator.

    This is the map with the most deformable layers below it. Among equals it is the one with the most layers in a sum
    or concatenation, where the other is a shortcut, and with the fewest in a product, where the other is a gate.
    """
    largest = max(step.size[0] * step.size[1] for step in before)
    candidates = [step for step in before if step.size[0] * step.size[1] == largest]
    return max(candidates, key=lambda step: (step.deformable, -step.layers if product else step.layers))


def _in_place(func: Any, size: Size, out: Tensor) -> bool:
    """Whether each position of the output reads that position of the input alone, whatever the order of dimensions."""
    if func.overloadpacket in _REDUCTIONS:
        return tuple(out.shape[-2:]) == size
    known = torch.Tag.pointwise in func.tags or func.overloadpacket in _POSITIONWISE
    return known and out.numel() % (size[0] * size[1]) == 0


def _pair(value: Sequence[int] | int) -> Size:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _convolution(args: Sequence[Any], out: Tensor) -> Window | None:
    _, weight, _, stride, padding, dilation, transposed, *_ = args
    if transposed or weight.dim() != 4:
        return None
    return Window((weight.shape[2], weight.shape[3]), _pair(stride), _pair(padding), _pair(dilation))


def _pool(args: Sequence[Any], out: Tensor) -> Window:
    defaults: Sequence[Any] = ([], 0, 1)
    kernel, stride, padding, dilation = [*args[1:], *defaults[len(args) - 2 :]][:4]
    return Window(_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation))


def _average_pool(args: Sequence[Any], out: Tensor) -> Window:
    return _pool(args[:4], out)  # the arguments after the padding say how borders count


def _pliant(args: Sequence[Any], out: Tensor) -> Window:
    _, offset, weight, _, _, stride, padding, dilation, *_ = args
    kernel = (weight.shape[2], weight.shape[3])
    return Window(kernel, _pair(stride), _pair(padding), _pair(dilation), _offsets(offset, kernel))


def _torchvision(args: Sequence[Any], out: Tensor) -> Window:
    kernel = (args[1].shape[2], args[1].shape[3])
    return Window(kernel, _pair(args[5:7]), _pair(args[7:9]), _pair(args[9:11]), _offsets(args[2], kernel))


def _offsets(offset: Tensor, kernel: Size) -> Tensor:
    return offset[0].detach().clone().cpu().unflatten(0, (-1, kernel[0] * kernel[1], 2))


def _resize(args: Sequence[Any], out: Tensor) -> Window:
    """Interpolation as a read at the corresponding position."""
    aligned = any(argument is True for argument in args)
    scales: list[float | None] = [argument for argument in args[2:] if isinstance(argument, float)] or [None, None]
    axes = []
    for length, to, scale in zip(args[0].shape[-2:], out.shape[-2:], scales, strict=True):
        if aligned:
            axes.append(((length - 1) / max(to - 1, 1), 0.0))
        else:
            step = length / to if scale is None else 1 / scale
            axes.append((step, 0.5 - 0.5 * step))
    (step_y, shift_y), (step_x, shift_x) = axes
    return Window((1, 1), (step_y, step_x), (shift_y, shift_x), (1, 1))


def _pad(args: Sequence[Any], out: Tensor) -> Window | None:
    left, _, top = [*args[1], 0][:3]  # a pad of the last dimension alone has two numbers
    return Window((1, 1), (1, 1), (top, left), (1, 1))


def _slice(args: Sequence[Any], out: Tensor) -> Window:
    defaults: Sequence[Any] = (0, None, None, 1)
    dim, start, _, step = [*args[1:], *defaults[len(args) - 1 :]]
    axis = (dim - args[0].dim() if dim >= 0 else dim) + 2
    stride, padding = [1, 1], [0, 0]
    if axis >= 0:
        first = start or 0
        stride[axis], padding[axis] = step, -(first + args[0].shape[dim] if first < 0 else first)
    return Window((1, 1), _pair(stride), _pair(padding), (1, 1))


_aten = torch.ops.aten
_INTERPOLATIONS = [
    getattr(_aten, name)
    for name in ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa")
]
_READERS: dict[Any, Callable[[Sequence[Any], Tensor], Window | None]] = {
    _aten.convolution: _convolution,
    _aten.max_pool2d_with_indices: _pool,
    _aten.avg_pool2d: _average_pool,
    torch.ops.pliant.deform_conv2d: _pliant,
    torch.ops.torchvision.deform_conv2d: _torchvision,
    _aten.constant_pad_nd: _pad,
    _aten.reflection_pad2d: _pad,
    _aten.replication_pad2d: _pad,
    _aten.slice: _slice,
    **dict.fromkeys(_INTERPOLATIONS, _resize),
}
_DEFORMABLE = (torch.ops.pliant.deform_conv2d, torch.ops.torchvision.deform_conv2d)
_FRAMING = (*_INTERPOLATIONS, _aten.slice)
_PRODUCTS = (_aten.mul, _aten.mul_)
_REDUCTIONS = tuple(getattr(_aten, name) for name in ("mean", "sum", "amax", "amin", "max"))
_POSITIONWISE = tuple(
    getattr(_aten, name)
    for name in (
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("cudnn_batch_norm", "miopen_batch_norm", "native_group_norm", "native_layer_norm", "native_dropout"),
        *("_softmax", "_prelu_kernel", "addmm", "mm", "linear"),
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "select", "unbind"),
        *("expand", "clone", "contiguous", "detach", "alias", "_to_copy", "cat", "stack", "split", "split_with_sizes"),
    )
)
