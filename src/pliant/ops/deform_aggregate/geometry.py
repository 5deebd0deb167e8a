"""Where the points of an aggregation lie before they are moved."""

from __future__ import annotations

from typing import NamedTuple


class Geometry(NamedTuple):
    """How the points of an output cell lie on the input. Pairs are (vertical, horizontal)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    offset_scale: float
    remove_center: bool

    @property
    def points(self) -> int:
        """The number P of points of an output cell."""
        return self.kernel_size[0] * self.kernel_size[1] - self.remove_center

    @property
    def center(self) -> tuple[int, int]:
        """The cell of the kernel's extent around which its points spread."""
        (kernel_y, kernel_x), (dilation_y, dilation_x) = self.kernel_size, self.dilation
        return dilation_y * (kernel_y - 1) // 2, dilation_x * (kernel_x - 1) // 2

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output, as for a convolution."""
        height, width = (
            (length + 2 * pad - dilate * (kernel - 1) - 1) // step + 1
            for length, pad, dilate, kernel, step in zip(
                size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return height, width

    def taps(self) -> list[tuple[float, float]]:
        """The points (x, y) relative to output cell times stride, **column by column**, as DCNv3 orders them."""
        (kernel_y, kernel_x), (center_y, center_x) = self.kernel_size, self.center
        return [
            (
                center_x - self.padding[1] + (i * self.dilation[1] - center_x) * self.offset_scale,
                center_y - self.padding[0] + (j * self.dilation[0] - center_y) * self.offset_scale,
            )
            for i in range(kernel_x)
            for j in range(kernel_y)
            if not (self.remove_center and (j, i) == (kernel_y // 2, kernel_x // 2))
        ]
