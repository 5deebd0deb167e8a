"""Parts of the output that a GPU works on one after the other, which bounds the memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from pliant.ops.deform_conv2d import tiles as settings
from pliant.ops.deform_conv2d.gpu import Call
from pliant.ops.deform_conv2d.tiles import count


class Chunk(NamedTuple):
    """Images of the output, or rows of one image."""

    first_image: int
    images: int
    first_row: int
    rows: int
    width: int

    @property
    def cells(self) -> int:
        return self.images * self.rows * self.width

    @property
    def arguments(self) -> dict[str, int]:
        return {
            "first_image": self.first_image,
            "images": self.images,
            "first_row": self.first_row,
            "rows": self.rows,
        }

    def map(self, rows: Tensor) -> Tensor:
        """Rows [cells, channels] as a map [images, channels, rows, width], channels last."""
        return rows.view(self.images, self.rows, self.width, -1).permute(0, 3, 1, 2)

    def part(self, table: Tensor) -> Tensor:
        """The chunk's part [cells, channels] of a map [B, H, W, channels]."""
        images = table[self.first_image : self.first_image + self.images]
        return images[:, self.first_row : self.first_row + self.rows].reshape(self.cells, -1)


def chunks(call: Call, bytes_of_cell: int) -> list[Chunk]:
    """The chunks of a call that takes so many bytes for each output cell, the largest first."""
    height, width = call.arguments["out_height"], call.arguments["out_width"]
    return _cut(call.problem.cells // (height * width), height, width, bytes_of_cell, settings.CHUNK_BYTES)


@functools.lru_cache(maxsize=1024)
def _cut(images: int, height: int, width: int, bytes_of_cell: int, most: int) -> list[Chunk]:
    row = width * bytes_of_cell
    if row * height <= most:
        each = count(images, count(images, most // (row * height)))
        return [Chunk(first, min(each, images - first), 0, height, width) for first in range(0, images, each)]
    rows = count(height, count(height, max(1, most // row)))
    return [
        Chunk(image, 1, first, min(rows, height - first), width)
        for image in range(images)
        for first in range(0, height, rows)
    ]
