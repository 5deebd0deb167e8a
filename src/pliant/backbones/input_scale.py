"""What scale of images a ResNet was trained on, told by its first layer."""

from __future__ import annotations

from torch import Tensor

# He et al.'s ResNet-50 has 69, and would have 1.2 for images with a deviation of one.
_SPREAD = 9.0


def trained_on_levels(filters: Tensor | None, variance: Tensor | None) -> bool | None:
    """Whether images were 0..255 minus a mean, as in Caffe, and not divided by their deviation, as torchvision's.

    The spread of the first convolution's outputs, in units of its filters' norms, is some 60 times as large then.

    Args:
        filters: weight of the first convolution, `[C, 3, k, k]`.
        variance: that its batch norm has counted, `[C]`.

    Returns:
        None where that cannot be told: one of them is missing or misshapen, or nothing was counted.
    """
    if filters is None or variance is None or filters.dim() != 4 or variance.shape != filters.shape[:1]:
        return None
    if bool((variance == 1).all()):
        return None
    return float((variance.float().sqrt() / filters.float().flatten(1).norm(dim=1)).median()) > _SPREAD
