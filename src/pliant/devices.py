"""Which device a command runs a network on."""

from __future__ import annotations

import torch


def choose_device(asked: str | None, accelerator: str = "auto") -> torch.device:
    """The device that was asked for; else a GPU if torch finds one, and else the CPU.

    Args:
        asked: Such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; None to choose one.
        accelerator: That of the recipe: ``"cpu"`` chooses no GPU.

    Raises:
        ValueError: If there is no such device.
    """
    if asked is None:
        return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ValueError(f"--device takes cpu, cuda or cuda:NUMBER, got {asked!r}") from error
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise ValueError(f"--device {asked}: torch finds {torch.cuda.device_count()} GPUs on this machine")
    return device
