"""A network of other people on `pliant.patch_torchvision()`: EDVR of BasicSR, which calls torchvision's operator.

    pip download --no-deps --no-binary :all: basicsr==1.4.2 && tar xzf basicsr-1.4.2.tar.gz
    python tools/third_party.py basicsr-1.4.2

Its file is run as it is. Only the package around it is left out, because that imports what today's torchvision lacks.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pliant


def edvr(source: Path) -> nn.Module:
    """BasicSR's EDVR with its default sizes (64 features, 5 frames), offsets drawn at random."""
    for name in ("basicsr", "basicsr.archs", "basicsr.ops", "basicsr.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(source.joinpath(*name.split(".")))]
        sys.modules[name] = package
    sys.modules["basicsr.utils"].get_root_logger = logging.getLogger  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from basicsr.archs.edvr_arch import EDVR  # type: ignore[import-not-found]
    torch.manual_seed(0)
    model: nn.Module = EDVR(num_extract_block=1, num_reconstruct_block=1).eval()
    for name, parameter in model.named_parameters():
        if "conv_offset.weight" in name:
            nn.init.normal_(parameter, std=0.01)
    return model


def main(source: Path, rounds: int = 7) -> None:
    """Print how much faster the network is, forward and in training, after its numbers were compared."""
    torch.set_num_threads(2)
    model = edvr(source)
    frames = torch.rand(1, 5, 3, 64, 96)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(frames)

    def train() -> Tensor:
        gradients = torch.autograd.grad(model(frames).mean(), [p for p in model.parameters() if p.requires_grad])
        return torch.cat([gradient.flatten() for gradient in gradients])

    for what, run in (("forward", forward), ("forward + backward", train)):
        ratio, difference = compare(run, rounds)
        print(f"{what}: {ratio:.2f} of the time, largest difference {difference:.1e} of the largest value")


def compare(run: Callable[[], Tensor], rounds: int, patch: Any = pliant.patch_torchvision) -> tuple[float, float]:
    """The median ratio of times with the patch and without, by turns, and the largest relative difference."""
    theirs = run()
    with patch():
        ours = run()
    ratios = []
    for _ in range(rounds):
        seconds = timed(run)
        with patch():
            ratios.append(timed(run) / seconds)
    return statistics.median(ratios), float((ours - theirs).abs().max() / theirs.abs().max())


def timed(run: Callable[[], Tensor]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(Path(sys.argv[1]))
