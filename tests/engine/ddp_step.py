"""One step of a segmenter in one of several processes, for `test_ddp_step`: RANK WORLD_SIZE STORE."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from pliant.engine import Schedule, SegmentationModule


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images)}


class Step(nn.Module):
    """The training step as a forward pass, as DDP needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.module = SegmentationModule(Network(), Schedule(max_steps=1, lr=0.1), ["a", "b", "c"])

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.module.training_step((images, masks), 0)


def main(rank: int, world_size: int, store: str) -> None:
    step = Step()
    run: nn.Module = step
    if world_size > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        run = nn.parallel.DistributedDataParallel(step)
    torch.manual_seed(1)
    images, masks = torch.rand(4, 3, 8, 9), torch.randint(3, (4, 8, 9))
    masks[0, :6] = 255  # the halves of the batch have different numbers of pixels
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    run(images[share], masks[share]).backward()
    gradient = step.module.model.conv.weight.grad.flatten().tolist()
    print(json.dumps([float(step.module.losses["loss"]), *gradient]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
