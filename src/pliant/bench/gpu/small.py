"""Small calls of all operators, forward and backward, for a sanitizer to watch: `python -m pliant.bench.gpu.small`."""

from __future__ import annotations

import torch

from pliant.bench.gpu import calls
from pliant.bench.gpu.problems import multiplying, shrunk
from pliant.bench.gpu.steps import Place
from pliant.bench.rows import ConvRow

DTYPES = ("bfloat16", "float32")


def calls_of(place: Place) -> list[calls.Call]:
    """A call of each operator."""
    grouped, wide = ConvRow(1, 24, 16, 7, 5, offset_groups=3, groups=2), ConvRow(1, 40, 70, 6, 11, spread=6.0)
    if place.tiny:
        grouped, wide = shrunk(grouped), shrunk(wide)
    return [
        calls.convolution("grouped", grouped, place.device),
        calls.convolution("wide", wide, place.device, border="authors"),
        *calls.poolings(Place(place.device, tiny=True)),
        calls.attention(Place(place.device, tiny=True)),
    ]


def main(device: str = "cuda") -> None:
    """Run them; results are compared elsewhere."""
    every = calls_of(Place(device, tiny=device == "cpu"))
    for call in every:
        for dtype in DTYPES:
            with multiplying(dtype):
                call.results(call.prepared(dtype, "channels last"))
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(every)} operators ran")


if __name__ == "__main__":
    main()
