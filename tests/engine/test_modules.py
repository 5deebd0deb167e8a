"""Losses, padding, and the optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pliant.engine import Schedule, SegmentationModule
from pliant.engine.segmentation import collate_evaluation, collate_training, pixel_loss
from pliant.nn import DeformConv2d


def test_pixel_loss_ignores_255() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = 3.0
    masks = torch.tensor([[[1, 255], [0, 255]]])
    right, even = torch.log1p(torch.exp(torch.tensor(-3.0))), torch.log(torch.tensor(2.0))
    assert pixel_loss(logits, masks) == pytest.approx(float((right + even) / 2))
    assert pixel_loss(logits, torch.full((1, 2, 2), 255)) == 0.0


def test_pixel_losses_of_two_processes_average_to_that_of_one() -> None:
    logits, masks = torch.randn(4, 3, 5, 6), torch.randint(3, (4, 5, 6))
    masks[0, :4] = 255
    pixels = (masks != 255).sum() / 2
    halves = [pixel_loss(logits[part], masks[part], pixels) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, pixel_loss(logits, masks))


def test_training_batch_is_padded() -> None:
    samples = [
        (torch.zeros(3, 2, 4), torch.zeros(2, 4, dtype=torch.int64)),
        (torch.ones(3, 3, 2), torch.ones(3, 2, dtype=torch.int64)),
    ]
    images, masks = collate_training(samples)
    assert images.shape == (2, 3, 3, 4)
    assert masks[0].tolist() == [[0] * 4, [0] * 4, [255] * 4]
    assert masks[1].tolist() == [[1, 1, 255, 255]] * 3
    assert images[0, :, 2, 0].tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert (images[1, :, :, :2] == 1).all()


def test_evaluation_batch_keeps_sizes() -> None:
    images, masks = collate_evaluation([(torch.zeros(3, 2, 4), torch.zeros(5, 9))])
    assert images[0].shape == (3, 2, 4)
    assert masks[0].shape == (5, 9)


def test_optimizer_leaves_biases_undecayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    module = SegmentationModule(model, Schedule(max_steps=30, lr=0.5, warmup_steps=1), ["a", "b"])
    configured = module.configure_optimizers()
    groups = configured["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 5e-4
    assert decay[id(model[0].bias)] == 0.0
    assert all(group["momentum"] == 0.9 for group in groups)
    assert all(group["lr"] == pytest.approx(0.05) for group in groups)


@pytest.mark.parametrize("modulated", [False, True])
def test_mean_offset_is_measured_in_training(modulated: bool) -> None:
    layer = DeformConv2d(3, 2, 3, padding=1, modulated=modulated)
    module = SegmentationModule(nn.Sequential(layer), Schedule(max_steps=1, lr=0.1), ["a", "b"])
    assert module.mean_offset() is None
    with torch.no_grad():
        layer.offset_conv.bias[:18:2] = 0.5  # every y
        layer.offset_conv.bias[18:] = 7.0  # mask logits
    module.train()
    module.model(torch.zeros(1, 3, 5, 5))
    assert module.mean_offset() == pytest.approx(0.25)
