"""Small calls of all operators, forward and backward, for a sanitizer to watch: `python -m pliant.bench.gpu.small`."""

from __future__ import annotations

import torch

from pliant.bench.gpu import calls
from pliant.bench.gpu.problems import multiplying, shrunk
from pliant.bench.gpu.steps import Place
from pliant.bench.rows import ConvRow


def main(device: str = "cuda") -> None:
    """Run them; results are compared elsewhere."""
    grouped, wide = ConvRow(1, 24, 16, 7, 5, offset_groups=3, groups=2), ConvRow(1, 40, 70, 6, 11, spread=6.0)
    if device == "cpu":
        grouped, wide = shrunk(grouped), shrunk(wide)
    every = [
        calls.convolution("grouped", grouped, device),
        calls.convolution("wide", wide, device, border="authors"),
        *calls.poolings(Place(device, tiny=True)),
    ]
    for call in every:
        for dtype in ("bfloat16", "float32"):
            with multiplying(dtype):
                call.results(call.prepared(dtype, "channels last"))
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(every)} operators ran")


if __name__ == "__main__":
    main()
