"""The positions of the parts of a RoI in deformable RoI pooling (Dai et al. 2017, figure 7)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pliant.introspect.recording import Pooled, Step, record
from pliant.introspect.sampling_points import centring
from pliant.nn import DeformPSRoIPool, DeformRoIPool
from pliant.ops.roi_pool import bins


class RoIParts(NamedTuple):
    """The parts of RoIs in one pooling layer. Boxes are (x0, y0, x1, y1) in image pixels, with continuous edges.

    Attributes:
        layer: name of the module.
        rois: the RoIs, `[R, 4]`.
        regular: the parts before they move, `[R, Ph, Pw, 4]`; these are the bins of the plain network.
        parts: the parts moved by the offsets of each class, `[R, T, Ph, Pw, 4]`. T is 1 if all classes share them.
    """

    layer: str
    rois: Tensor
    regular: Tensor
    parts: Tensor


def roi_parts(model: nn.Module, image: Tensor, boxes: Tensor | None = None) -> list[RoIParts]:
    """The position of every part of every RoI in the deformable RoI poolings of a model.

    A part is the area of a bin of equation 5 (or of the authors' samples), moved by `gamma * offset * (w, h)`
    (equation 6). Bins consist of complete cells of the map, so neighbours may overlap by a cell before they move.

    Args:
        model: any model. It runs once, in evaluation mode, and is left as it was.
        image: `[3, H, W]` as the model takes it.
        boxes: RoIs `[R, 4]` in image pixels to pool instead of the model's own proposals, in the layers of `pliant.nn`.
            Resizing of the image before the network is taken into account.

    Returns:
        One `RoIParts` per layer in order of execution; empty if there is none.

    Raises:
        ValueError: if boxes have another shape.

    Examples:
        >>> model = pliant.models.rfcn(num_classes=3, backbone="timm/test_resnet", min_size=64, max_size=64)
        >>> box = torch.tensor([[10.0, 10.0, 50.0, 40.0]])
        >>> for layer in pliant.introspect.roi_parts(model, torch.rand(3, 64, 64), box):
        ...     print(layer.layer, list(layer.parts.shape))
        roi_heads.box_roi_pool.score_pool [1, 3, 7, 7, 4]
        roi_heads.box_roi_pool.box_pool [1, 1, 7, 7, 4]
    """
    if boxes is not None and (boxes.dim() != 2 or boxes.shape[1] != 4):
        raise ValueError(f"boxes must have shape [R, 4], got {list(boxes.shape)}")
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, DeformRoIPool | DeformPSRoIPool):
                note = module.register_forward_pre_hook(lambda module, args: calls.append((module, args)))
                hooks.callback(note.remove)
        own = record(model, image).pools
    if boxes is None:
        return [_parts(pool, pool.step) for pool in own]
    steps = {pool.name: pool.step for pool in own}

    def pool_boxes() -> None:
        for module, args in calls:
            module(*args[:-1], [_network_boxes(boxes, steps[names[module]], module).to(args[0])])

    names = {module: name for name, module in model.named_modules()}
    return [_parts(pool, steps[pool.name]) for pool in record(model, image, pool_boxes).pools]


def _network_boxes(boxes: Tensor, step: Step | None, module: nn.Module) -> Tensor:
    scale, shift = _frame(step)
    rois = (boxes.double().cpu() - shift) / scale
    return (
        rois - torch.tensor([0, 0, 1, 1]) if module.sampling == "authors" else rois
    )  # the last pixel belongs to the RoI


def _frame(step: Step | None) -> tuple[Tensor, Tensor]:
    """Scale and shift, `[4]` each, from boxes in the image that the network works on to boxes in the original image."""
    framing: list[Step] = []
    for below in reversed(list(step.chain()) if step is not None else []):
        if below.window is not None and not below.framing:
            break
        framing.insert(0, below)
    scale, shift = centring(framing)
    shift = shift - 0.5 * scale + 0.5
    return scale.flip(0).repeat(2), shift.flip(0).repeat(2)


def _parts(pool: Pooled, step: Step | None) -> RoIParts:
    (height, width), _, cells_a_pixel, gamma, rule, samples = pool.pooling
    rois = pool.rois[pool.rois[:, 0] == 0, 1:].double().cpu()
    offset = pool.offset[pool.rois[:, 0] == 0].double().cpu()
    x = _bins(rois[:, 0], rois[:, 2], width, pool.size[1], cells_a_pixel, rule, samples)
    y = _bins(rois[:, 1], rois[:, 3], height, pool.size[0], cells_a_pixel, rule, samples)
    regular = torch.stack(
        [edge.expand(-1, height, width) for edge in (x[0][:, None], y[0][..., None], x[1][:, None], y[1][..., None])],
        dim=-1,
    )  # [R, Ph, Pw, 4]
    row, column = (torch.arange(n) * parts // n for n, parts in zip((height, width), offset.shape[2:], strict=True))
    shift = offset.unflatten(1, (-1, 2))[..., row.unsqueeze(1), column]  # [R, T, 2, Ph, Pw], x first
    moves = gamma * torch.stack((x[2], y[2]), dim=1)  # [R, 2] cells an offset of one moves
    shift = (shift * moves[:, None, :, None, None]).permute(0, 1, 3, 4, 2).repeat(1, 1, 1, 1, 2)
    scale, start = _frame(step)
    parts = regular.unsqueeze(1) + shift
    if rule != "whole_cells":
        rois = rois + torch.tensor([0, 0, 1, 1])
    return RoIParts(pool.name, rois * scale + start, *(box / cells_a_pixel * scale + start for box in (regular, parts)))


def _bins(
    start: Tensor, end: Tensor, parts: int, size: int, scale: float, rule: str, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """First and last edges of the bins on one axis, `[R, P]` each, and the sides of the RoIs, `[R]`, in cells."""
    if rule == "authors_samples":
        found = bins.authors_samples(start, end, scale, parts, samples)
        low = found.position[..., 0] + 0.5
        return low, low + (found.length / parts).unsqueeze(1), found.length
    bins_of = bins.whole_cells if rule == "whole_cells" else bins.authors_whole_cells
    found = bins_of(start, end, scale, parts, size)
    low = found.position[..., 0].double()
    return low, low + found.counted.sum(-1), found.length
