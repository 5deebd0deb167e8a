"""Which anchors and RoIs of an image are drawn to learn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from pliant import distributed


class BoxSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, with random numbers of its own for each image of a step.

    They depend on the image's place in the whole batch, so processes that share a batch draw what one process draws,
    if torch's generator stands alike in all of them and each has as many images.
    """

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw; see torchvision's sampler.

        Args:
            matched_idxs: for each image 1 and above for an object, 0 for background, -1 for neither.

        Returns:
            For each image uint8 masks of what was drawn, of objects and of background.
        """
        seed = int(torch.randint(2**62, ()))
        first = distributed.rank() * len(matched_idxs)
        devices = {labels.device for labels in matched_idxs if labels.is_cuda}
        drawn = []
        with torch.random.fork_rng(devices=devices):
            for place, labels in enumerate(matched_idxs, start=first):
                torch.manual_seed(seed + place)
                drawn.append(super().__call__([labels]))
        return [positive for [positive], _ in drawn], [negative for _, [negative] in drawn]
