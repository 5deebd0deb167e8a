"""Random selection of the anchors and RoIs that contribute to a loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from pliant import distributed


class BoxSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, with a separate random seed for each image of a step.

    The seed depends on the position of the image in the batch of all processes. Processes that share a batch therefore
    draw what a single process draws, provided that torch's generators agree and every process has as many images.
    """

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw objects and background of each image.

        Args:
            matched_idxs: labels per image; 1 and above for an object, 0 for background, -1 for ignored.

        Returns:
            For each image a uint8 mask of the drawn objects, and one of the drawn background.
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
