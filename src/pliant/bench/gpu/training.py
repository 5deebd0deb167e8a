"""Steps that time a training step of the paper's networks: plain and deformable, in tf32 and under autocast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pliant.bench.gpu.clock import Clock, quartiles
from pliant.bench.gpu.problems import multiplying
from pliant.bench.gpu.steps import Absent, Place, Results, Step, described
from pliant.ops import _native

PLAIN, PLIANT, TORCHVISION = "plain", "deformable", "deformable, torchvision's operator"
CLASSES = 21
SIZE, SCENE = (600, 1000), (512, 1024)  # of the detectors' image, and of the segmenter's
PRECISIONS = {"tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}  # autocast but for the first
_SEED = 0
_TAKES = 12.0
_SECONDS = 1.5  # for the rounds of a step


def steps(place: Place) -> Iterator[Step]:
    """Yield a step for each network and precision."""
    every = list(product(("bfloat16", "tf32", "float16"), ("Faster R-CNN", "DeepLab", "R-FCN")))
    for precision, network in every[2:5] if place.tiny else every:
        yield Step("training", f"training {network}, {precision}", _TAKES, partial(_measure, network, precision))


def _measure(network: str, precision: str, place: Place) -> Results:
    with _without_interpreter(place):
        yield from _timed(network, precision, place)


def _without_interpreter(place: Place) -> AbstractContextManager[object]:
    """Avoid Triton's interpreter in a rehearsal, because it takes minutes for a network."""
    if place.on_gpu:
        return nullcontext()
    return _native.use(next(name for name in _native.available() if name != _native.TRITON))


def _timed(network: str, precision: str, place: Place) -> Results:
    from pliant.bench import network as networks  # needs torchvision

    dtype = PRECISIONS[precision]
    clock = Clock(place)
    torch.backends.cudnn.benchmark = True
    sample = _sample(network, place)
    plain = networks.started(_build(network, place, deformable=False)).to(place.device)
    deformable = networks.started(_build(network, place, deformable=True)).to(place.device)
    for model in (plain, deformable):
        model.to(memory_format=torch.channels_last)
    networks.spread_offsets(deformable, partial(_losses, deformable, sample))
    contexts: dict[str, tuple[nn.Module, Callable[[], AbstractContextManager[object]]]] = {
        PLAIN: (plain, nullcontext),
        PLIANT: (deformable, nullcontext),
        TORCHVISION: (deformable, networks.torchvisions_operator),
    }
    size = list(sample[0][0].shape[-2:])
    head = {"key": {"network": network, "precision": precision, "image": size, "backbone": _backbone(place)}}
    turns: dict[str, Callable[[], object]] = {}
    found: dict[str, dict[str, Any]] = {}
    with multiplying("float32" if dtype else "tf32"):
        for name, (model, context) in contexts.items():
            turn = partial(_step, model, context, sample, dtype, place)
            try:
                if name == TORCHVISION and dtype is not None and not place.on_gpu:
                    raise Absent("torchvision has no half precision on the CPU")
                loss = turn()
                turn()
                found[name] = {"loss": loss if math.isfinite(loss) else None, "right": math.isfinite(loss)}
                turns[name] = turn
            except Exception as error:
                yield head | {"implementation": name} | described(error)
        seconds = clock.device_seconds(turns, _SECONDS)
        for name, call in turns.items():
            peak = clock.peak_bytes(call)
            memory = {"peak_mib": None if peak is None else round(peak / 2**20, 1)}
            rounds = {"device": quartiles(seconds[name]) | {"rounds": len(seconds[name])}}
            if busy := clock.busy_seconds(call):
                rounds["busy"] = quartiles(busy) | {"rounds": len(busy)}
            yield head | {"implementation": name} | found[name] | rounds | memory


def _backbone(place: Place) -> str:
    return "timm/resnet10t" if place.tiny else "resnet101"


def _build(network: str, place: Place, *, deformable: bool) -> nn.Module:
    from pliant import models

    torch.manual_seed(_SEED)
    layers = (1 if place.tiny else 3) if deformable else 0
    if network == "DeepLab":
        return models.deeplab(CLASSES, backbone=_backbone(place), deform_layers=layers)
    size = {"min_size": 64, "max_size": 96} if place.tiny else {"min_size": SIZE[0], "max_size": SIZE[1]}
    build: Callable[..., nn.Module] = models.rfcn if network == "R-FCN" else models.faster_rcnn
    return build(CLASSES, backbone=_backbone(place), deform_layers=layers, deform_roi=deformable, **size)


def _sample(network: str, place: Place) -> tuple[Any, Any]:
    """Draw images and targets on the device."""
    height, width = (64, 96) if place.tiny else SCENE if network == "DeepLab" else SIZE
    generator = torch.Generator().manual_seed(_SEED)
    image = torch.rand(3, height, width, generator=generator)
    if network == "DeepLab":
        mask = torch.randint(0, CLASSES, (1, height // 16, width // 16), generator=generator)
        mask = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
        return image.unsqueeze(0).to(place.device), mask.to(place.device)
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    sides = (0.1 + 0.3 * torch.rand(8, 2, generator=generator)) * torch.tensor([width, height])
    labels = torch.randint(1, CLASSES, (8,), generator=generator)
    boxes = torch.cat((corner, corner + sides), dim=1)
    return [image.to(place.device)], [{"boxes": boxes.to(place.device), "labels": labels.to(place.device)}]


def _losses(model: nn.Module, sample: tuple[Any, Any]) -> Tensor:
    inputs, targets = sample
    if isinstance(targets, torch.Tensor):
        return functional.cross_entropy(model(inputs)["out"].float(), targets)
    losses: Mapping[str, Tensor] = model(inputs, targets)
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def _step(
    model: nn.Module,
    context: Callable[[], AbstractContextManager[object]],
    sample: tuple[Any, Any],
    dtype: torch.dtype | None,
    place: Place,
) -> float:
    """Run forward and backward with the same random choices every time, and return the loss."""
    torch.manual_seed(_SEED)
    model.zero_grad(set_to_none=True)
    with context(), torch.autocast(place.device, dtype, enabled=dtype is not None):
        loss = _losses(model, sample)
    # float16 needs its gradients scaled; only their time is of interest here.
    (loss * (256.0 if dtype == torch.float16 else 1.0)).backward()
    return float(loss.detach())
