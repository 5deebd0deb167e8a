"""The input's gradient on a GPU, gathered through lists of the samples that read each cell.

Channels are not added by atomics, which takes a fraction of the time. Kernels: input_gradient_kernels.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.ops import _gpu
from pliant.ops.deform_conv2d.chunks import Chunk
from pliant.ops.deform_conv2d.gpu import Call, Launch, run
from pliant.ops.deform_conv2d.tiles import Tiles, cell_tiles, count

BYTES_OF_SAMPLE = 16  # in a list: its number, two fractions and a modulation
_MODULE = "input_gradient_kernels"
_LISTED = 128  # samples of a program that lists them


def gather(call: Call, chunk: Chunk, above: Tensor, grad_input: Tensor, factors: Tensor | None = None) -> None:
    """Fill the chunk's part of the input's gradient: for each cell, the weighted sum of the samples that read it.

    Args:
        call: the convolution.
        chunk: the part of the output whose samples are summed.
        above: the columns' gradients [cells, taps, C], or the output's [cells, C] where there are factors.
        grad_input: the input's gradient [B, H, W, C]; chunks after an image's first one are added to it.
        factors: the weight [taps, C] of a depthwise convolution, which the output's gradient is multiplied with.
    """
    problem, offset_groups = call.problem, call.offset_groups
    height, width = call.arguments["height"], call.arguments["width"]
    bounds = above.new_zeros(offset_groups * chunk.images * (height + 1) * (width + 1) + 1, dtype=torch.int32)
    length = chunk.cells * problem.taps * offset_groups
    filled = {
        "samples": above.new_empty(length, dtype=torch.int32),
        "fractions": above.new_empty((length, 2), dtype=torch.float32),
        "modulations": None if call.mask is None else above.new_empty(length, dtype=torch.float32),
    }

    def listed(fill: bool) -> Launch:
        grid = count(chunk.cells, _LISTED), problem.taps, offset_groups
        return Launch(f"{_MODULE}.list_samples", grid, Tiles(_LISTED, 1, warps=4), chunk.arguments | {"FILL": fill})

    run(call, ("list_samples", chunk, False), lambda: listed(False), filled | {"bounds": bounds})
    bounds = bounds.cumsum(0, dtype=torch.int32)
    run(call, ("list_samples", chunk, True), lambda: listed(True), filled | {"bounds": bounds})

    def gathered() -> Launch:
        tiles = call.tiles("gather")
        blocks = offset_groups // tiles.pack * count(problem.sampled, tiles.channels)
        arguments = {
            "images": chunk.images,
            "DEPTHWISE": factors is not None,
            "INDEX": _gpu.index_type(grad_input, above),
            "ADD": chunk.first_row > 0,
            "BLOCK_N": tiles.cells,
        }
        return Launch(f"{_MODULE}.gather", (cell_tiles(tiles, chunk.images, height, width), blocks), tiles, arguments)

    tensors = {"above": above, "factors": factors, "bounds": bounds, "grad_input": grad_input[chunk.first_image :]}
    run(call, ("gather", chunk), gathered, filled | tensors)
