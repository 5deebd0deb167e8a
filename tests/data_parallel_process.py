"""One of several processes that share a step of a deformable network under torch's DistributedDataParallel.

    python data_parallel_process.py RANK PROCESSES BACKEND MEETING OUT     # PROCESSES = 1: alone, with the whole batch

The first process writes the gradients. With NCCL each process has a GPU of its own, and batch norms are synchronised.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import pliant


class TwoHeads(nn.Module):
    """A deformable layer under two heads, of which a call takes one: the other's parameters have no gradient."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.deformable = pliant.nn.DeformConv2d(8, 8, 3, padding=1, modulated=True)
        self.heads = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, images: Tensor, head: int) -> Tensor:
        return self.heads[head](self.deformable(self.norm(self.stem(images)).relu()))


def main(rank: int, processes: int, backend: str, meeting: str, out: str) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    torch.manual_seed(0)
    model: nn.Module = TwoHeads(norm=backend == "nccl").to(device)
    images = torch.randn(4, 3, 9, 8).to(device)
    if processes > 1:
        distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=processes)
        if backend == "nccl":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        ids = [device] if device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)
    for head in (0, 1):  # the second step would hang or raise if the first one had waited for the unused head
        model.zero_grad(set_to_none=True)
        model(images[rank::processes], head).square().mean().backward()
    if rank == 0:
        gradients = {
            name.removeprefix("module."): None if parameter.grad is None else parameter.grad.cpu()
            for name, parameter in model.named_parameters()
        }
        torch.save(gradients, out)
    if processes > 1:
        distributed.destroy_process_group()
        # Where a step left parameters unused, torch keeps gloo's threads, which can abort an interpreter that ends.
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
