"""Depthwise deformable convolution on a GPU (depthwise_kernels.py): nothing is multiplied as a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.ops import _gpu
from pliant.ops.deform_conv2d.chunks import chunks
from pliant.ops.deform_conv2d.gpu import Call, Launch, run
from pliant.ops.deform_conv2d.input_gradient import BYTES_OF_SAMPLE, gather
from pliant.ops.deform_conv2d.tiles import count

_MODULE = "depthwise_kernels"
_PROGRAMS = 8  # a multiprocessor, below which programs share the taps
_SHARES = 16  # of the cells, for each multiprocessor, at most: each has a sum of the weight's gradient


def forward(call: Call, bias: Tensor | None, out: Tensor) -> Tensor:
    """Fill the output."""

    def described() -> Launch:
        tiles = call.tiles("depthwise_forward")
        blocks = call.offset_groups // tiles.pack * count(call.problem.sampled, tiles.channels)
        return Launch(
            f"{_MODULE}.depthwise_forward", (call.cell_tiles(tiles), blocks), tiles, {"BIASED": bias is not None}
        )

    bias = None if bias is None else bias.contiguous()
    tensors = {"weight": _by_tap(call.weight), "bias": bias, "out": out}
    run(call, ("depthwise_forward", bias is None), described, tensors)
    return out


def backward(call: Call, grad: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input [B, H, W, C] and weight [C, kh, kw, 1]; the others are filled in."""
    above = grad.permute(0, 2, 3, 1).contiguous()
    weight = _by_tap(call.weight)
    tiles = call.tiles("depthwise_backward")
    shares = min(call.cell_tiles(tiles), _SHARES * _gpu.multiprocessors(grad.device))
    programs = shares, call.offset_groups // tiles.pack
    channels = call.arguments["channels"]

    def described() -> Launch:
        wanted = _PROGRAMS * _gpu.multiprocessors(grad.device)
        parts = min(call.problem.taps, count(wanted, programs[0] * programs[1]))
        strides = {"out_image": above.stride(0), "out_channel": 1, "out_cell": channels}
        return Launch(f"{_MODULE}.depthwise_backward", (*programs, parts), tiles, strides | {"parts": parts})

    of_shares = weight.new_empty((shares, *weight.shape), dtype=torch.float32)
    results = {"grad_offset": grad_offset, "grad_mask": grad_mask, "grad_weight": of_shares}
    run(call, "depthwise_backward", described, {"weight": weight, "grad": above, **results})

    every = chunks(call, call.problem.taps * call.offset_groups * BYTES_OF_SAMPLE)
    in_parts = every[0].rows < above.shape[1]
    grad_input = torch.empty_like(call.input, dtype=torch.float32 if in_parts else call.input.dtype)
    for chunk in every:
        gather(call, chunk, chunk.part(above), grad_input, weight)
    return grad_input, of_shares.sum(0).T.reshape(call.weight.shape)


def _by_tap(weight: Tensor) -> Tensor:
    """The weight [C, kh, kw, 1] as [taps, C]."""
    return weight.flatten(1).T.contiguous()
