"""What the sampler of anchors and RoIs draws depends on torch's process group, not on the environment."""

from __future__ import annotations

import pytest
import torch

from pliant import distributed
from pliant.models.box_sampler import BoxSampler


def drawn(labels: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.stack(masks) for masks in zip(*BoxSampler(8, 0.5)(labels), strict=True)]


def test_two_processes_draw_what_one_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [torch.randint(-1, 3, (50,), generator=torch.Generator().manual_seed(image)) for image in range(4)]
    together = drawn(labels)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = slice(2 * rank, 2 * rank + 2)
        assert all(map(torch.equal, drawn(labels[share]), together[share]))


def test_variables_of_a_launcher_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [torch.arange(50) % 4 - 1]
    alone = drawn(labels)
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert torch.equal(*drawn(labels), *alone)
