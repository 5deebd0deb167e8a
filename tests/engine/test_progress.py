"""What the progress of a training says besides its steps."""

from __future__ import annotations

import torch

from pliant.engine.callbacks import losses_text


def test_the_parts_of_a_loss_follow_it() -> None:
    losses = {"loss": torch.tensor(1.5), "loss_classifier": torch.tensor(1.25), "loss_box_reg": torch.tensor(0.25)}
    assert losses_text(losses) == "loss 1.5000 (classifier 1.250, box_reg 0.250)"


def test_one_part_is_not_repeated() -> None:
    assert losses_text({"loss": torch.tensor(0.5), "loss_pixel": torch.tensor(0.5)}) == "loss 0.5000"
